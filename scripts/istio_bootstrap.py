"""Builds the Envoy bootstrap that istiod would make of our Istio resources.

There is no istiod here to ask, so this does what its source says it does with exactly the resources that we ship:
the operations our EnvoyFilter uses, a WasmPlugin, a ServiceEntry with one socket and its DestinationRule, a
VirtualService that matches headers, and AuthorizationPolicies that deny by headers. Anything else is refused with a
`ManifestError` instead of being guessed.
It reads no files and starts nothing.
"""

import copy
import json
import re

HCM = "envoy.filters.network.http_connection_manager"
ROUTER = "envoy.filters.http.router"
EXTENSIONS = "type.googleapis.com/envoy.extensions"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
# Istio gives every route this many retries unless its VirtualService says otherwise.
ISTIO_DEFAULT_RETRIES = 2
# What stands in the files where `kustomize` puts the deployment's secret. Shorter than any that the filter takes.
UNSET_SECRET = "SET-ME"


class ManifestError(Exception):
    """A resource that istiod would refuse or ignore, or that this builder does not know."""


# --- What istiod generates without us ---


def gateway_bootstrap(virtual_service, policies, listen_port, upstream, admin_port=0):
    """A gateway with one HTTP listener, the VirtualService's routes, what AuthorizationPolicies refuse before all other
    filters, and one model server for all of them, which takes gRPC on the same port."""
    hcm = {
        "@type": f"{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "outbound_0.0.0.0_8080",
        "server_name": "istio-envoy",
        "use_remote_address": True,
        "normalize_path": True,
        "http_filters": [
            *map(rbac_filter, policies),
            http_filter("envoy.filters.http.cors", "filters.http.cors.v3.Cors"),
            http_filter(ROUTER, "filters.http.router.v3.Router"),
        ],
        "route_config": {
            "name": "http.8080",
            "validate_clusters": False,
            "virtual_hosts": [{"name": "*:8080", "domains": ["*"], "routes": routes(virtual_service)}],
        },
    }
    listener = {
        "name": "0.0.0.0_8080",
        "address": socket_address("127.0.0.1", listen_port),
        # Too small for us on purpose: what our resources do not raise fails the checks.
        "per_connection_buffer_limit_bytes": 32768,
        "filter_chains": [{"filters": [{"name": HCM, "typed_config": hcm}]}],
    }
    model = static_cluster("model", socket_address(*upstream))
    grpc = static_cluster("model-grpc", socket_address(*upstream))
    # What istiod makes of a Service's port that is named `grpc`.
    http2 = {"@type": f"type.googleapis.com/{HTTP_OPTIONS}", "explicit_http_config": {"http2_protocol_options": {}}}
    grpc["typed_extension_protocol_options"] = {HTTP_OPTIONS: http2}
    return {
        "admin": {"address": socket_address("127.0.0.1", admin_port)},
        "static_resources": {"listeners": [listener], "clusters": [model, grpc]},
    }


def http_filter(name, kind):
    return {"name": name, "typed_config": {"@type": f"{EXTENSIONS}.{kind}"}}


def socket_address(host, port):
    return {"socket_address": {"address": host, "port_value": int(port)}}


def static_cluster(name, address):
    endpoint = {"endpoint": {"address": address}}
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}
    return {"name": name, "type": "STATIC", "connect_timeout": "10s", "load_assignment": assignment}


def routes(virtual_service):
    return [route for rule in virtual_service["spec"]["http"] for route in rule_routes(rule)]


def rule_routes(rule):
    refuse_unknown(rule, {"name", "match", "route", "retries", "timeout", "headers"}, "VirtualService http")
    refuse_unknown(rule.get("headers", {}), {"request"}, "VirtualService http.headers")
    removed = rule.get("headers", {}).get("request", {})
    refuse_unknown(removed, {"remove"}, "VirtualService http.headers.request")
    change = {"request_headers_to_remove": removed["remove"]} if removed else {}
    action = {"timeout": rule.get("timeout", "0s")}
    attempts = rule.get("retries", {}).get("attempts", ISTIO_DEFAULT_RETRIES)
    if attempts:
        action["retry_policy"] = {"retry_on": "connect-failure,refused-stream", "num_retries": attempts}
    for match in rule.get("match", [{}]):
        refuse_unknown(match, {"headers"}, "VirtualService match")
        conditions = match.get("headers", {})
        for condition in conditions.values():
            refuse_unknown(condition, {"exact", "prefix"}, "VirtualService match.headers")
        headers = [{"name": name, "string_match": condition} for name, condition in conditions.items()]
        is_grpc = conditions.get("content-type", {}).get("prefix") == "application/grpc"
        cluster = "model-grpc" if is_grpc else "model"
        yield {"match": {"prefix": "/", "headers": headers}, "route": action | {"cluster": cluster}} | change


# --- AuthorizationPolicy ---


def rbac_filter(policy):
    """As istiod builds it (pilot/pkg/security/authz): each rule a policy, each `when` an alternative of its values."""
    spec, name = policy["spec"], f"{policy['metadata']['namespace']}]-policy[{policy['metadata']['name']}"
    refuse_unknown(spec, {"selector", "action", "rules"}, "AuthorizationPolicy spec")
    if spec.get("action") != "DENY":
        raise ManifestError(f"action {spec.get('action', 'ALLOW')}: only DENY is known to this script on a gateway")
    rules = {f"ns[{name}]-rule[{number}]": rbac_policy(rule) for number, rule in enumerate(spec["rules"])}
    rbac = http_filter("envoy.filters.http.rbac", "filters.http.rbac.v3.RBAC")
    rbac["typed_config"]["rules"] = {"action": "DENY", "policies": rules}
    return rbac


def rbac_policy(rule):
    refuse_unknown(rule, {"when"}, "AuthorizationPolicy rule")
    conditions = [{"or_ids": {"ids": header_principals(condition)}} for condition in rule["when"]]
    return {
        "permissions": [{"and_rules": {"rules": [{"any": True}]}}],
        "principals": [{"and_ids": {"ids": conditions}}],
    }


def header_principals(condition):
    refuse_unknown(condition, {"key", "values"}, "AuthorizationPolicy when")
    header = re.fullmatch(r"request\.headers\[([a-z-]+)]", condition["key"])
    if not header or set(condition["values"]) != {"*"}:
        raise ManifestError(f"{condition}: only `*` of one request header is known to this script")
    return [{"header": {"name": header[1], "present_match": True}}]


# --- EnvoyFilter ---


def apply_envoyfilter(bootstrap, envoyfilter):
    """The bootstrap with every patch applied, in their order. A patch that matches nothing is an error."""
    patched = copy.deepcopy(bootstrap)
    for index, patch in enumerate(envoyfilter["spec"]["configPatches"]):
        try:
            apply_patch(patched["static_resources"], patch)
        except ManifestError as error:
            raise ManifestError(f"configPatches[{index}]: {error}") from None
    return patched


def apply_patch(resources, patch):
    context = patch.get("match", {}).get("context")
    if context != "GATEWAY":
        raise ManifestError(f"match.context is {context}: it would change sidecars too, not only the gateway")
    applies_to, operation = patch["applyTo"], patch["patch"]["operation"]
    value = copy.deepcopy(patch["patch"]["value"])
    wanted = patch["match"].get("listener", {}).get("filterChain", {}).get("filter", {})
    known = {
        ("CLUSTER", "ADD"): lambda: resources["clusters"].append(value),
        ("LISTENER", "MERGE"): lambda: [merge(listener, value) for listener in resources["listeners"]],
        ("NETWORK_FILTER", "MERGE"): lambda: merge(network_filter(resources, wanted), value),
        ("HTTP_FILTER", "INSERT_BEFORE"): lambda: insert_before(network_filter(resources, wanted), wanted, value),
        ("VIRTUAL_HOST", "MERGE"): lambda: [merge(host, value) for host in virtual_hosts(resources)],
        ("HTTP_ROUTE", "ADD"): lambda: [host["routes"].append(copy.deepcopy(value)) for host in virtual_hosts(resources)],
    }
    if (applies_to, operation) not in known:
        raise ManifestError(f"{operation} of a {applies_to} is not known to this script: teach it first")
    known[(applies_to, operation)]()


def network_filter(resources, wanted):
    for chain in (chain for listener in resources["listeners"] for chain in listener["filter_chains"]):
        for candidate in chain["filters"]:
            if candidate["name"] == wanted.get("name"):
                return candidate
    raise ManifestError(f"no network filter is named {wanted.get('name')!r}, so the patch would do nothing")


def virtual_hosts(resources):
    return network_filter(resources, {"name": HCM})["typed_config"]["route_config"]["virtual_hosts"]


def insert_before(connection_manager, wanted, value):
    filters = connection_manager["typed_config"]["http_filters"]
    name = wanted.get("subFilter", {}).get("name")
    for position, candidate in enumerate(filters):
        if candidate["name"] == name:
            filters.insert(position, value)
            return
    raise ManifestError(f"no HTTP filter is named {name!r}, so the patch would do nothing")


def merge(target, value):
    """Protobuf's merge: messages field by field, lists appended, everything else replaced."""
    for key, new in value.items():
        if key == "@type" and target.get(key, new) != new:
            raise ManifestError(f"a {new} cannot be merged into a {target[key]}")
        if isinstance(new, dict) and isinstance(target.get(key), dict):
            merge(target[key], new)
        elif isinstance(new, list) and isinstance(target.get(key), list):
            target[key].extend(new)
        else:
            target[key] = new


# --- WasmPlugin ---


def apply_wasmplugin(bootstrap, plugin, service_entry, destination_rule):
    """The bootstrap with the plugin before the router and the ServiceEntry's cluster beside it."""
    patched = copy.deepcopy(bootstrap)
    resources = patched["static_resources"]
    position = {"name": HCM, "subFilter": {"name": ROUTER}}
    insert_before(network_filter(resources, position), position, plugin_filter(plugin))
    resources["clusters"].append(socket_cluster(service_entry, destination_rule))
    return patched


def plugin_filter(plugin):
    spec = plugin["spec"]
    refuse_unknown(
        spec, {"selector", "url", "pluginName", "phase", "failStrategy", "pluginConfig"}, "WasmPlugin spec"
    )
    policies = {"FAIL_RELOAD": "FAIL_RELOAD", "FAIL_CLOSE": "FAIL_CLOSED", "FAIL_OPEN": "FAIL_OPEN"}
    if not spec["url"].startswith("file://"):
        raise ManifestError(f"url {spec['url']!r}: only file:// can be built here")
    config = {
        "name": f"{plugin['metadata']['namespace']}.{plugin['metadata']['name']}",
        "root_id": spec.get("pluginName", ""),
        "failure_policy": policies[spec.get("failStrategy", "FAIL_CLOSE")],
        "configuration": {
            "@type": "type.googleapis.com/google.protobuf.StringValue",
            "value": json.dumps(spec["pluginConfig"]),
        },
        "vm_config": {
            "runtime": "envoy.wasm.runtime.v8",
            "code": {"local": {"filename": spec["url"].removeprefix("file://")}},
        },
    }
    return {
        "name": config["name"],
        "typed_config": {"@type": f"{EXTENSIONS}.filters.http.wasm.v3.Wasm", "config": config},
    }


def socket_cluster(service_entry, destination_rule):
    spec = service_entry["spec"]
    [host], [port], [endpoint] = spec["hosts"], spec["ports"], spec["endpoints"]
    if destination_rule["spec"]["host"] != host:
        raise ManifestError(f"DestinationRule is about {destination_rule['spec']['host']}, not {host}")
    if port["protocol"] != "HTTP2" or spec["resolution"] != "STATIC":
        raise ManifestError("ServiceEntry needs protocol HTTP2 and resolution STATIC")
    path = endpoint["address"].removeprefix("unix://")
    cluster = static_cluster(f"outbound|{port['number']}||{host}", {"pipe": {"path": path}})
    pool = destination_rule["spec"]["trafficPolicy"]["connectionPool"]
    cluster["connect_timeout"] = envoy_duration(pool["tcp"]["connectTimeout"])
    cluster["circuit_breakers"] = {"thresholds": [circuit_breaker(pool)]}
    cluster["typed_extension_protocol_options"] = {HTTP_OPTIONS: http2_options(pool["http"])}
    return cluster


def circuit_breaker(pool):
    return {
        "max_connections": pool["tcp"]["maxConnections"],
        "max_pending_requests": pool["http"]["http1MaxPendingRequests"],
        "max_requests": pool["http"]["http2MaxRequests"],
    }


def http2_options(http_pool):
    keepalive = {name: envoy_duration(value) for name, value in http_pool["http2KeepAlive"].items()}
    http2 = {"max_concurrent_streams": http_pool["maxConcurrentStreams"], "connection_keepalive": keepalive}
    return {
        "@type": f"type.googleapis.com/{HTTP_OPTIONS}",
        "explicit_http_config": {"http2_protocol_options": http2},
    }


# --- Small things ---


def with_route_secret(document, secret):
    """What kustomize makes of a resource: the deployment's secret where the files have a gap."""
    if isinstance(document, dict):
        return {key: with_route_secret(value, secret) for key, value in document.items()}
    if isinstance(document, list):
        return [with_route_secret(item, secret) for item in document]
    return document.replace(UNSET_SECRET, secret) if isinstance(document, str) else document


def rebind(bootstrap, sidecar_socket=None, wasm=None):
    """The bootstrap with the sidecar's socket and the filter's file where they are on this machine."""

    def walk(node):
        if isinstance(node, list):
            return [walk(item) for item in node]
        if not isinstance(node, dict):
            return node
        node = {key: walk(value) for key, value in node.items()}
        if sidecar_socket and "pipe" in node:
            node["pipe"] = {"path": str(sidecar_socket)}
        if wasm and "vm_config" in node:
            node["vm_config"]["code"] = {"local": {"filename": str(wasm)}}
        return node

    return walk(bootstrap)


def milliseconds(duration):
    """Envoy's and Istio's durations (`0.25s`, `250ms`, `10m`) as milliseconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", duration)
    if not found:
        raise ManifestError(f"{duration!r} is not a duration")
    return round(float(found[1]) * {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}[found[2]])


def envoy_duration(duration):
    """Istio's `250ms` as protobuf writes it, `0.25s`."""
    return f"{milliseconds(duration) / 1000:g}s"


def refuse_unknown(section, known, where):
    unknown = sorted(set(section) - known)
    if unknown:
        raise ManifestError(f"{where}: {', '.join(unknown)} is not known to this script: teach it first")
