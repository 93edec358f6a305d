"""What must hold of who may call what, asked of `mesh_model`: each function returns what does not, as sentences."""

import copy

import mesh_model as mesh
import yaml
from istio_bootstrap import ManifestError, with_route_secret
from mesh_model import Pod

# A deployment's, as `openssl rand -hex 32` makes them; the checks' own.
SECRET = "6f1d0b5a1c9e4f0e8a7b2d3c4e5f60718293a4b5c6d7e8f9012a3b4c5d6e7f80"
# What the filter sets on a call that it admits, beside `x-priority`, which a client may send too.
SET_BY_FILTER = ("x-sluice-route", "x-pool", "x-tenant-id", "x-tenant-namespace", "x-tenant-tier", "x-admission-id")
SENT_BY_CLIENTS = ("x-priority", "x-sluice-deadline-ms", "authorization", "x-api-key", "api-key", "content-type")

STOCK_LABELS = {"app": "istio-ingressgateway", "istio": "ingressgateway"}
STOCK = Pod("Istio's own ingress gateway", "istio-system", STOCK_LABELS, "istio-ingressgateway")
STOCK_HERE = Pod("a stock ingress gateway in our namespace", "sluice", STOCK_LABELS, "istio-ingressgateway")
STRANGER = Pod("another tenant's pod", "dept-a", {"app": "notebook"})
OUTSIDER = Pod("a pod outside of the mesh", "dept-b", {"app": "cron"}, account=None)
PROMETHEUS = Pod("Prometheus", "monitoring", {"app.kubernetes.io/name": "prometheus"}, "prometheus")
DNS = Pod("the cluster's DNS", "kube-system", {"k8s-app": "kube-dns"}, account=None)
ISTIOD = Pod("istiod", "istio-system", {"app": "istiod"}, "istiod")
INTERNET = None


def workload_pod(resources, kind, name):
    [workload] = [d for d in mesh.of_kind(resources, kind) if d["metadata"]["name"] == name]
    template = workload["spec"]["template"]
    account = template["spec"].get("serviceAccountName")
    return Pod(f"the pod of {name}", workload["metadata"]["namespace"], template["metadata"]["labels"], account)


def our_gateway(resources):
    return workload_pod(resources, "Deployment", "sluice-gateway")


def namesake(gateway):
    """A pod with our gateway's labels, made by a user who may create pods elsewhere."""
    return Pod("a pod elsewhere with our gateway's labels", "dept-c", gateway.labels)


def pools(resources):
    rules = [rule for service in mesh.of_kind(resources, "VirtualService") for rule in service["spec"]["http"]]
    matches = [match for rule in rules for match in rule.get("match", [])]
    return sorted({match["headers"]["x-pool"]["exact"] for match in matches if "x-pool" in match.get("headers", {})})


# --- Gateways ---


def gateway_problems(resources):
    resources = [with_route_secret(document, SECRET) for document in resources]
    ours = our_gateway(resources)
    return selector_problems(resources, ours) + route_problems(resources, ours) + header_problems(resources, ours)


def selector_problems(resources, ours):
    problems = []
    for document in resources:
        title = f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] == "Gateway":
            stock = [pod for pod in (STOCK, STOCK_HERE) if mesh.selects(document, pod)]
            problems += [f"{title} also selects {pod.name}" for pod in stock]
        is_ours = document["kind"] in ("Gateway", "EnvoyFilter", "WasmPlugin")
        if is_ours and not mesh.selects(document, ours):
            problems.append(f"{title} does not select our gateway")
    return problems


def route_problems(resources, ours):
    """What a client can send gets no route where the filter is not there, and what the filter sends gets one."""
    without_policies = [d for d in resources if d["kind"] != "AuthorizationPolicy"]
    problems = []
    for pod in (ours, namesake(ours), STOCK, STOCK_HERE):
        for headers in forgeries(resources):
            if mesh.answer(without_policies, pod, headers)[0] == 200:
                problems.append(f"{pod.name} without the filter serves a client that sends {headers}")
        # The secret may have been read by somebody. Then the policies, and that others do not see our routes, must do.
        for headers in calls_of_filter(resources):
            if mesh.answer(resources, pod, headers)[0] == 200:
                problems.append(f"{pod.name} without the filter serves a client that knows the routes' secret")
    for headers in calls_of_filter(resources):
        status, upstream = mesh.answer(without_policies, ours, headers)
        if status != 200:
            problems.append(f"our gateway has no route for what the filter sends: {sorted(headers)}")
        if SECRET in upstream.values():
            problems.append(f"the model server of pool {headers['x-pool']} gets the routes' secret")
    return problems


def forgeries(resources):
    kinds = ({}, {"content-type": "application/grpc"})
    guesses = ({}, {"x-sluice-route": "SET-ME"}, {"x-sluice-route": "a" * len(SECRET)}, {"x-sluice-route": ""})
    return [{}] + [
        {"x-pool": pool, "x-tenant-id": "dept-a"} | kind | guess
        for pool in pools(resources) for kind in kinds for guess in guesses
    ]


def calls_of_filter(resources):
    kinds = ({}, {"content-type": "application/grpc+proto"})
    return [dict.fromkeys(SET_BY_FILTER, "x") | {"x-pool": pool, "x-sluice-route": SECRET} | kind
            for pool in pools(resources) for kind in kinds]


def header_problems(resources, ours):
    refused = [name for name in SENT_BY_CLIENTS if mesh.answer(resources, ours, {name: "1"})[0] == 403]
    passed = [name for name in SET_BY_FILTER if mesh.answer(resources, ours, {name: "1"})[0] != 403]
    problems = [f"an AuthorizationPolicy refuses clients that send {name}" for name in refused]
    return problems + [f"no AuthorizationPolicy refuses clients that send {name}" for name in passed]


# --- Model servers ---


def model_problems(resources):
    """Of every port that a route leads to: our gateway may call it, by network and by mesh, and no other pod may."""
    ours = our_gateway(resources)
    others = (STOCK, STOCK_HERE, STRANGER, OUTSIDER, PROMETHEUS, namesake(ours))
    problems = []
    for namespace, port in destinations(resources):
        for model in (Pod("a model server", namespace, {"app": "smol"}), Pod("a pod without labels", namespace)):
            where = f"{model.name} in {namespace}, port {port}"
            for pod in (ours, *others, Pod("its neighbour", namespace)):
                connects = mesh.may_receive(resources, model, pod, port)
                calls = mesh.is_authorised(resources, model, pod.principal, {})
                if connects != (pod is ours):
                    problems.append(f"NetworkPolicies {'let' if connects else 'do not let'} {pod.name} reach {where}")
                if calls != (pod is ours):
                    problems.append(f"AuthorizationPolicies {'let' if calls else 'do not let'} {pod.name} call {where}")
            if not mesh.may_send(resources, ours, model, port):
                problems.append(f"our gateway's egress policy does not let it reach {where}")
            if not is_strict(resources, model):
                problems.append(f"{where} takes plain text: no PeerAuthentication is STRICT there")
    return sorted(set(problems))


def destinations(resources):
    for service in mesh.of_kind(resources, "VirtualService"):
        for target in (entry["destination"] for rule in service["spec"]["http"] for entry in rule["route"]):
            _, namespace, *rest = target["host"].split(".")
            if rest != ["svc", "cluster", "local"]:
                raise ManifestError(f"destination {target['host']} is not NAME.NAMESPACE.svc.cluster.local")
            yield namespace, target["port"]["number"]


def is_strict(resources, pod):
    policies = [d for d in mesh.of_kind(resources, "PeerAuthentication") if mesh.selects(d, pod)]
    return any(policy["spec"].get("mtls", {}).get("mode") == "STRICT" for policy in policies)


# --- What our own pods may reach, and who reaches them ---


def egress_problems(resources):
    ours, redis = our_gateway(resources), workload_pod(resources, "StatefulSet", "redis")
    needed = [(DNS, 53, "UDP"), (ISTIOD, 15012, "TCP"), (redis, 6379, "TCP")]
    cut_off = [pod for pod, *how in needed if not mesh.may_send(resources, ours, pod, *how)]
    problems = [f"our gateway may not reach {pod.name}" for pod in cut_off]
    forbidden = [(INTERNET, 443), (STRANGER, 80), (PROMETHEUS, 9090), (STOCK, 443)]
    for pod, port in forbidden:
        if mesh.may_send(resources, ours, pod, port):
            problems.append(f"our gateway may reach {pod.name if pod else 'the Internet'} at port {port}")
    if mesh.may_send(resources, redis, STRANGER, 80) or mesh.may_send(resources, redis, INTERNET, 443):
        problems.append("Redis may reach others")
    callers = (STRANGER, STOCK, PROMETHEUS, namesake(ours))
    problems += [f"{pod.name} may reach Redis" for pod in callers if mesh.may_receive(resources, redis, pod, 6379)]
    if not mesh.may_receive(resources, redis, ours, 6379):
        problems.append("our gateway may not reach Redis")
    return problems


# --- The checks' own test ---

# What was shipped once: every stock ingress gateway has the label, and a client can send the header.
OLD_FORM = """
{apiVersion: networking.istio.io/v1, kind: Gateway, metadata: {name: models, namespace: sluice},
 spec: {selector: {istio: ingressgateway}, servers: []}}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: models, namespace: sluice},
 spec: {hosts: ["*"], gateways: [models], http: [
   {match: [{headers: {x-pool: {exact: smol}}}],
    route: [{destination: {host: smol.models.svc.cluster.local, port: {number: 8000}}}]}]}}
---
{apiVersion: networking.istio.io/v1alpha3, kind: EnvoyFilter, metadata: {name: sluice, namespace: sluice},
 spec: {workloadSelector: {labels: {istio: ingressgateway}}}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: sluice-gateway, namespace: sluice},
 spec: {template: {metadata: {labels: {app.kubernetes.io/name: sluice-gateway, istio: ingressgateway}},
                   spec: {serviceAccountName: sluice-gateway}}}}
"""
OLD_FORM_FINDINGS = (
    "Gateway models also selects Istio's own ingress gateway",
    "the pod of sluice-gateway without the filter serves a client that sends {'x-pool': 'smol'",
    "Istio's own ingress gateway without the filter serves a client that sends {'x-pool': 'smol'",
    "no AuthorizationPolicy refuses clients that send x-pool",
    "NetworkPolicies let another tenant's pod reach a model server in models, port 8000",
    "AuthorizationPolicies let another tenant's pod call a model server in models, port 8000",
    "takes plain text",
)


def all_problems(resources):
    return [problem for check in (gateway_problems, model_problems, egress_problems) for problem in check(resources)]


def old_form_is_accepted():
    """Which of the known faults of the form that was shipped once these checks would not find."""
    old = list(yaml.safe_load_all(OLD_FORM))
    found = gateway_problems(old) + model_problems(old)
    return [f"not found: {fault}" for fault in OLD_FORM_FINDINGS if not any(fault in problem for problem in found)]


def damages():
    """Single changes of the shipped form, each of which must be found. `change` gets (kind, name) → document."""

    def without(kind, name):
        return f"without {kind} {name}", lambda named: named.pop((kind, name))

    def virtual_service(what, change):
        def on_each_rule(named):
            for rule in named["VirtualService", "models"]["spec"]["http"]:
                change(rule)
        return what, on_each_rule

    yield "a Gateway for every ingress gateway", lambda named: named["Gateway", "models"]["spec"].update(
        selector={"istio": "ingressgateway"})
    yield "an EnvoyFilter elsewhere", lambda named: named["EnvoyFilter", "sluice"]["metadata"].update(namespace="other")
    yield virtual_service("routes without the secret", lambda rule: rule["match"][0]["headers"].pop("x-sluice-route"))
    yield virtual_service("the secret goes upstream", lambda rule: rule.pop("headers"))
    yield "routes that all namespaces see", lambda named: named["VirtualService", "models"]["spec"].pop("exportTo")
    rules = lambda named: named["AuthorizationPolicy", "sluice-headers"]["spec"]["rules"]  # noqa: E731
    for index, name in enumerate(SET_BY_FILTER):
        yield f"{name} is not refused", lambda named, index=index: rules(named).pop(index)
    yield "x-priority is refused", lambda named: rules(named).append(
        {"when": [{"key": "request.headers[x-priority]", "values": ["*"]}]})
    yield "all of one rule must hold", lambda named: named["AuthorizationPolicy", "sluice-headers"]["spec"].update(
        rules=[{"when": [each["when"][0] for each in rules(named)]}])
    yield without("AuthorizationPolicy", "sluice-headers")
    yield without("AuthorizationPolicy", "only-the-gateway")
    yield "whole namespace allowed", lambda named: named["AuthorizationPolicy", "only-the-gateway"]["spec"]["rules"][0][
        "from"][0]["source"].update(principals=["cluster.local/ns/sluice/*"])
    yield without("PeerAuthentication", "only-mutual-tls")
    yield without("NetworkPolicy", "only-the-gateway")
    yield without("NetworkPolicy", "sluice-gateway")
    yield without("NetworkPolicy", "redis")
    yield "one labelled model server", lambda named: named["NetworkPolicy", "only-the-gateway"]["spec"].update(
        podSelector={"matchLabels": {"app": "smol"}})
    yield "no egress to the models", lambda named: named["NetworkPolicy", "sluice-gateway"]["spec"].update(egress=[])


def unnoticed_damages(resources):
    """Which changes of the shipped form would pass unnoticed."""
    unnoticed = []
    for what, change in damages():
        named = {(d["kind"], d["metadata"]["name"]): copy.deepcopy(d) for d in resources}
        change(named)
        if not all_problems(list(named.values())):
            unnoticed.append(f"not found: {what}")
    return unnoticed
