"""Evaluates who may call what by the resources of istio/ and k8s/: given pods, and calls that a test makes up.

Selectors, AuthorizationPolicies, NetworkPolicies and a VirtualService's routes mean here what Istio and Kubernetes
document, for the fields that our files use. Any other field is refused with a `ManifestError` instead of being guessed.
It reads no files and starts nothing.
"""

import re
from dataclasses import dataclass, field

from istio_bootstrap import ManifestError, refuse_unknown

# Resources without a selector in this namespace apply to all others too.
ROOT_NAMESPACE = "istio-system"
TRUST_DOMAIN = "cluster.local"
# A selector in these kinds finds pods of the resource's own namespace only. A Gateway's finds them in all.
NAMESPACED = {
    "EnvoyFilter": ("workloadSelector", "labels"),
    "WasmPlugin": ("selector", "matchLabels"),
    "AuthorizationPolicy": ("selector", "matchLabels"),
    "PeerAuthentication": ("selector", "matchLabels"),
    "NetworkPolicy": ("podSelector", "matchLabels"),
}


@dataclass(frozen=True)
class Pod:
    """`account` is its service account, by which Istio knows it; a pod outside of the mesh has none."""

    name: str
    namespace: str
    labels: dict = field(default_factory=dict)
    account: str | None = "default"

    @property
    def principal(self):
        return self.account and f"{TRUST_DOMAIN}/ns/{self.namespace}/sa/{self.account}"


def of_kind(resources, kind):
    return [document for document in resources if document["kind"] == kind]


def selects(document, pod):
    kind, spec, namespace = document["kind"], document.get("spec", {}), document["metadata"]["namespace"]
    if kind == "Gateway":
        return spec["selector"].items() <= pod.labels.items()
    outer, inner = NAMESPACED[kind]
    selector = spec.get(outer, {})
    refuse_unknown(selector, {inner}, f"{kind} {outer}")
    everywhere = namespace == ROOT_NAMESPACE and kind != "NetworkPolicy"
    return (everywhere or namespace == pod.namespace) and selector.get(inner, {}).items() <= pod.labels.items()


# --- A gateway without the filter ---


def answer(resources, pod, headers):
    """The status that a call with these headers gets from a gateway pod in which no filter of ours runs, and the
    headers that reach the model. `None`: the pod listens for nothing of ours."""
    gateways = [gateway for gateway in of_kind(resources, "Gateway") if selects(gateway, pod)]
    if not gateways:
        return None, {}
    if not is_authorised(resources, pod, None, headers):
        return 403, {}
    return route(resources, pod, gateways, headers)


def route(resources, pod, gateways, headers):
    bound = {f"{gateway['metadata']['namespace']}/{gateway['metadata']['name']}" for gateway in gateways}
    for service in of_kind(resources, "VirtualService"):
        namespace, spec = service["metadata"]["namespace"], service["spec"]
        visible = spec.get("exportTo", ["*"])
        names = {name if "/" in name else f"{namespace}/{name}" for name in spec["gateways"]}
        if not names & bound or not ("*" in visible or ("." in visible and namespace == pod.namespace)):
            continue
        for rule in spec["http"]:
            if any(match_holds(match, headers) for match in rule.get("match", [{}])):
                removed = rule.get("headers", {}).get("request", {}).get("remove", [])
                return 200, {name: value for name, value in headers.items() if name not in removed}
    return 404, {}


def match_holds(match, headers):
    refuse_unknown(match, {"headers"}, "VirtualService match")
    return all(header_holds(wanted, headers.get(name)) for name, wanted in match.get("headers", {}).items())


def header_holds(wanted, value):
    refuse_unknown(wanted, {"exact", "prefix"}, "VirtualService match.headers")
    if value is None:
        return False
    return value == wanted["exact"] if "exact" in wanted else value.startswith(wanted["prefix"])


# --- AuthorizationPolicy ---


def is_authorised(resources, pod, principal, headers):
    """No policy that denies matches, and of those that allow, if there are some, one does."""
    policies = [policy for policy in of_kind(resources, "AuthorizationPolicy") if selects(policy, pod)]
    for policy in policies:
        refuse_unknown(policy["spec"], {"selector", "action", "rules"}, "AuthorizationPolicy spec")

    def matches(action):
        rules = [policy["spec"].get("rules", []) for policy in policies if action_of(policy) == action]
        return rules and any(rule_holds(rule, principal, headers) for each in rules for rule in each)

    if matches("DENY"):
        return False
    return not any(action_of(policy) == "ALLOW" for policy in policies) or bool(matches("ALLOW"))


def action_of(policy):
    action = policy["spec"].get("action", "ALLOW")
    if action not in ("ALLOW", "DENY"):
        raise ManifestError(f"AuthorizationPolicy action {action} is not known to this script: teach it first")
    return action


def rule_holds(rule, principal, headers):
    refuse_unknown(rule, {"from", "when"}, "AuthorizationPolicy rule")
    sources = [entry["source"] for entry in rule.get("from", [])]
    for source in sources:
        refuse_unknown(source, {"principals"}, "AuthorizationPolicy source")
    comes_from = not sources or any(text_holds(name, principal) for each in sources for name in each["principals"])
    return comes_from and all(condition_holds(condition, headers) for condition in rule.get("when", []))


def condition_holds(condition, headers):
    refuse_unknown(condition, {"key", "values"}, "AuthorizationPolicy when")
    header = re.fullmatch(r"request\.headers\[(.+)]", condition["key"])
    if not header:
        raise ManifestError(f"{condition['key']} is not known to this script: teach it first")
    return any(text_holds(wanted, headers.get(header[1].lower())) for wanted in condition["values"])


def text_holds(wanted, value):
    """Istio's: `*` is anything that is there, else a prefix, a suffix, or the very text."""
    if value is None:
        return False
    if wanted == "*":
        return True
    if wanted.startswith("*"):
        return value.endswith(wanted[1:])
    return value.startswith(wanted[:-1]) if wanted.endswith("*") else value == wanted


# --- NetworkPolicy ---


def may_receive(resources, pod, source, port, protocol="TCP"):
    return passes(resources, "Ingress", pod, source, port, protocol)


def may_send(resources, pod, target, port, protocol="TCP"):
    return passes(resources, "Egress", pod, target, port, protocol)


def passes(resources, direction, pod, peer, port, protocol):
    """Without a policy of this direction all pass; with some, what one of them lists. A peer of `None` is no pod."""
    policies = [policy for policy in of_kind(resources, "NetworkPolicy") if selects(policy, pod)]
    policies = [policy for policy in policies if direction in policy["spec"]["policyTypes"]]
    rules = [(policy, rule) for policy in policies for rule in policy["spec"].get(direction.lower(), [])]
    return not policies or any(network_rule_holds(*each, direction, peer, port, protocol) for each in rules)


def network_rule_holds(policy, rule, direction, peer, port, protocol):
    side = {"Ingress": "from", "Egress": "to"}[direction]
    refuse_unknown(rule, {side, "ports"}, f"NetworkPolicy {direction}")
    listed = [(entry.get("protocol", "TCP"), entry["port"]) for entry in rule.get("ports", [])]
    if listed and (protocol, port) not in listed:
        return False
    peers = rule.get(side)
    return not peers or any(peer_holds(policy, wanted, peer) for wanted in peers)


def peer_holds(policy, wanted, peer):
    refuse_unknown(wanted, {"namespaceSelector", "podSelector"}, "NetworkPolicy peer")
    if peer is None:
        return False
    own = {"kubernetes.io/metadata.name": policy["metadata"]["namespace"]}
    namespace = wanted["namespaceSelector"].get("matchLabels", {}) if "namespaceSelector" in wanted else own
    pods = wanted.get("podSelector", {}).get("matchLabels", {})
    in_namespace = namespace.items() <= {"kubernetes.io/metadata.name": peer.namespace}.items()
    return in_namespace and pods.items() <= peer.labels.items()
