"""Reads envoy/, istio/ and k8s/, and finds where their files contradict each other or name what is not there.

Nothing is started and nothing is printed: what is wrong is returned, as a list of sentences.
"""

import json
import pathlib

import yaml

import istio_bootstrap as istio
from istio_bootstrap import ManifestError, milliseconds

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Envoy's own, where a configuration says nothing.
ENVOY_STREAM_IDLE_MS = 300_000
# Every call in the queue is a request that Envoy holds open towards the sidecar.
LEAST_HELD_REQUESTS = 65_536
# What the filter leaves with an admitted call, and the header in which it shows its secret.
ADMITTED_STATE = "wasm.sluice.pool"
ROUTE_HEADER = "x-sluice-route"
# The cluster of calls that the filter has not admitted: there must be none of this name.
NOWHERE = "nowhere"
# What Envoy answers itself, by the details of its reply, and must say in the filter's words.
OWN_REPLIES = {
    "request_payload_too_large": "Envoy's own 413, which a fast HTTP/1.1 client can cause",
    "upgrade_failed": "Envoy's own 403 to an upgrade",
    "no_healthy_upstream": "Envoy's own 503 where no model server is there",
    "upstream_reset": "Envoy's own 503 where a model server breaks off",
    "overload": "Envoy's own 503 where it has no room",
}
# A worker reads so much of one connection before others have their turn, and of a stream so much may be under way.
MOST_READ_BYTES = 128 << 10
MOST_UNDER_WAY_BYTES = 1 << 20


# --- Reading ---


class StrictLoader(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error: the second would silently win."""


def unique_mapping(loader, node):
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = sorted({str(key) for key in keys if keys.count(key) > 1})
    if twice:
        raise ManifestError(f"line {node.start_mark.line + 1}: {', '.join(twice)} is given twice")
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, unique_mapping)


def documents(path):
    try:
        return [document for document in yaml.load_all(path.read_text(), StrictLoader) if document]
    except (ManifestError, yaml.YAMLError) as error:
        raise ManifestError(f"{relative(path)}: {error}") from None


def relative(path):
    return path.relative_to(ROOT).as_posix()


def resources():
    """(file, document) of every resource in istio/ and k8s/; what kustomize reads itself is not one."""
    files = [path for folder in ("istio", "k8s") for path in sorted((ROOT / folder).glob("*.yaml"))]
    return [(path, document) for path in files if path.name != "kustomization.yaml" for document in documents(path)]


def one(everything, kind, name=None):
    found = [d for _, d in everything if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    if len(found) != 1:
        raise ManifestError(f"expected one {kind} {name or ''}, found {len(found)}")
    return found[0]


def title(path, document):
    return f"{relative(path)}: {document['kind']} {document['metadata']['name']}"


# --- What names something ---


def kustomization_problems(folder):
    [document] = documents(folder / "kustomization.yaml")
    listed = set(document["resources"])
    generated = [file for entry in document.get("configMapGenerator", []) for file in entry.get("files", [])]
    generated = [file.rpartition("=")[2] for file in generated]
    missing = [name for name in [*listed, *generated] if not (folder / name).exists()]
    forgotten = {path.name for path in folder.glob("*.yaml")} - listed - {"kustomization.yaml"}
    # Either of the two is listed, never both.
    forgotten -= {"envoyfilter.yaml", "wasmplugin.yaml"}
    problems = [f"{name} is listed and not there" for name in missing]
    problems += [f"{name} is there and not listed" for name in sorted(forgotten)]
    if {"envoyfilter.yaml", "wasmplugin.yaml"} <= listed:
        problems.append("envoyfilter.yaml and wasmplugin.yaml exclude each other: every call would be charged twice")
    return problems


def volume_problems(workload):
    pod = workload["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    volumes |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
    containers = pod["containers"] + pod.get("initContainers", [])
    mounts = {(c["name"], mount["name"]) for c in containers for mount in c.get("volumeMounts", [])}
    missing = sorted(mount for mount in mounts if mount[1] not in volumes)
    return [f"{container} mounts {name}, which is no volume" for container, name in missing]


def wanted_labels(document):
    """The pod labels that a resource selects by, whatever its kind calls them."""
    spec = document.get("spec", {})
    if document["kind"] in ("Service", "Gateway"):
        return spec.get("selector")
    field = {"EnvoyFilter": ("workloadSelector", "labels"), "WasmPlugin": ("selector", "matchLabels")}
    field |= {"NetworkPolicy": ("podSelector", "matchLabels"), "AuthorizationPolicy": ("selector", "matchLabels")}
    outer, inner = field.get(document["kind"], ("", ""))
    return spec.get(outer, {}).get(inner)


def monitor_problems(everything):
    monitor = one(everything, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"]
    ports = [
        port["name"]
        for _, d in everything
        if d["kind"] == "Service" and wanted.items() <= d["metadata"].get("labels", {}).items()
        for port in d["spec"]["ports"]
    ]
    problems = []
    for endpoint in monitor["spec"]["endpoints"]:
        if endpoint["port"] not in ports:
            problems.append(f"no Service with the labels {wanted} has a port {endpoint['port']!r}")
        if endpoint.get("honorLabels") is not True:
            problems.append("honorLabels must be true, or every tenant's GPU load becomes the gateway's")
    return problems


# --- Envoy and the sidecar must agree ---


def agreement_problems(bootstrap, service, folder):
    """Where a bootstrap and the sidecar's configuration (its paths relative to `folder`) contradict each other."""
    listener = bootstrap["static_resources"]["listeners"][0]
    hcm = listener["filter_chains"][0]["filters"][0]["typed_config"]
    wasm = next(f for f in hcm["http_filters"] if "wasm" in f["typed_config"]["@type"])["typed_config"]["config"]
    plugin = wasm["configuration"]["value"]
    plugin = json.loads(plugin) if isinstance(plugin, str) else plugin
    problems = time_problems(hcm, plugin, service) + mode_problems(wasm, plugin, listener, hcm)
    problems += cluster_problems(bootstrap, plugin, service, folder) + pool_problems(hcm, plugin, service)
    problems += guard_problems(hcm, plugin, bootstrap) + runtime_problems(bootstrap)
    if wasm.get("failure_policy") != "FAIL_RELOAD":
        problems.append("the filter's failure policy is not FAIL_RELOAD: one trap would stop or open it for good")
    return problems


def time_problems(hcm, plugin, service):
    queue = service["queue"]["timeout_ms"]
    ledger = service["ledger"]
    longest = ledger.get("longest_stream_ms", ledger["longest_request_ms"])
    idle = milliseconds(hcm.get("stream_idle_timeout", f"{ENVOY_STREAM_IDLE_MS}ms"))
    problems = [
        f"the pool {pool['name']} does not say what its servers do when a client leaves (on_abort)"
        for pool in service["pools"]
        if "on_abort" not in pool
    ]
    if idle <= queue:
        problems.append(f"stream_idle_timeout ({idle} ms) ends calls that wait up to {queue} ms in the queue")
    if plugin["service"]["timeout_ms"] <= queue:
        problems.append(f"service.timeout_ms must be over queue.timeout_ms ({queue}), or the filter gives up first")
    duration = hcm.get("common_http_protocol_options", {}).get("max_stream_duration")
    if duration and milliseconds(duration) != longest:
        problems.append(f"max_stream_duration ({duration}) is not ledger.longest_stream_ms ({longest})")
    if not duration:
        problems += [
            f"nothing ends a call after ledger.longest_stream_ms ({longest}): route timeout {route['timeout']}"
            for route in routes_of(hcm)
            if route["cluster"] != NOWHERE and not 0 < milliseconds(route["timeout"]) <= longest - queue
        ]
    if any("retry_policy" in route for route in routes_of(hcm)):
        problems.append("a route retries: that runs a second call on one slot")
    return problems


def routes_of(hcm):
    return [route["route"] for host in hcm["route_config"]["virtual_hosts"] for route in host["routes"]]


def guard_problems(hcm, plugin, bootstrap):
    """Each route that leads to a server must ask for what only the filter can set: its state, or its secret, which must
    not go on."""
    problems = []
    clusters = {cluster["name"] for cluster in bootstrap["static_resources"]["clusters"]}
    if NOWHERE in clusters:
        problems.append(f"a cluster is named {NOWHERE}: what the filter has not admitted would reach it")
    for route in (route for host in hcm["route_config"]["virtual_hosts"] for route in host["routes"]):
        if route["route"]["cluster"] == NOWHERE:
            continue
        if route["route"]["cluster"] not in clusters:
            problems.append(f"a route leads to {route['route']['cluster']!r}, which is no cluster")
        states = {state["key"] for state in route["match"].get("filter_state", [])}
        headers = {each["name"]: each["string_match"].get("exact") for each in route["match"].get("headers", [])}
        secret = headers.get(ROUTE_HEADER)
        is_known = secret is not None and secret == plugin.get("route_secret")
        if is_known and ROUTE_HEADER not in route.get("request_headers_to_remove", []):
            problems.append(f"a route sends the filter's secret on: {route['match']}")
        if not is_known and ADMITTED_STATE not in states:
            problems.append(f"a route serves calls that the filter has not admitted: {route['match']}")
    return problems


def fairness_problems(listener, hcm):
    """What one client may make a worker read, or hold, before others have their turn."""
    http2 = hcm.get("http2_protocol_options", {})
    limits = {
        "per_connection_buffer_limit_bytes": (listener.get("per_connection_buffer_limit_bytes", 1 << 20), MOST_READ_BYTES),
        "initial_stream_window_size": (http2.get("initial_stream_window_size", 1 << 24), MOST_UNDER_WAY_BYTES),
    }
    return [f"{name} is {value}, over {most}: a few clients could stall a worker"
            for name, (value, most) in limits.items() if value > most]


def runtime_problems(bootstrap):
    """Of a hundred calls that one connection brings at once, the first must not make all other connections wait."""
    layers = bootstrap.get("layered_runtime", {}).get("layers", [])
    values = {name: value for layer in layers for name, value in layer.get("static_layer", {}).items()}
    at_once = values.get("http.max_requests_per_io_cycle")
    return [] if at_once == 1 else [f"http.max_requests_per_io_cycle is {at_once}, not 1: one connection could stall a worker"]


def mode_problems(wasm, plugin, listener, hcm):
    stops = wasm.get("allow_on_headers_stop_iteration", False)
    if (plugin["mode"] == "body") != stops:
        return [f"mode {plugin['mode']} with allow_on_headers_stop_iteration {stops}: calls would hang"]
    if plugin["mode"] != "body":
        return []
    most = plugin["body"]["max_bytes"]
    problems = []
    for host in hcm["route_config"]["virtual_hosts"]:
        limit, last = host.get("request_body_buffer_limit", 0), host["routes"][-1]
        if limit <= most:
            problems.append(f"request_body_buffer_limit ({limit}) of {host['name']} is not over body.max_bytes ({most})")
        if last["match"] != {"prefix": "/"} or last["route"]["cluster"] != NOWHERE:
            problems.append(f"the last route of {host['name']} does not match all calls and lead nowhere: without a route "
                            "Envoy does not know the limit of their buffer yet")
    own_replies = json.dumps(hcm.get("local_reply_config", {}))
    for details, what in OWN_REPLIES.items():
        if details not in own_replies:
            problems.append(f"local_reply_config does not rewrite {what} ({details})")
    offers = hcm.get("http_protocol_options", {}).get("ignore_http_11_upgrade", [])
    if {"prefix": "TLS/"} not in offers:
        problems.append("http_protocol_options does not ignore offers of TLS, which some clients send with every call: 403")
    return problems + fairness_problems(listener, hcm)


def cluster_problems(bootstrap, plugin, service, folder):
    name = plugin["service"]["cluster"]
    found = [c for c in bootstrap["static_resources"]["clusters"] if c["name"] == name]
    if not found:
        return [f"service.cluster names {name!r}, which is no cluster"]
    [cluster] = found
    [endpoint] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    pipe = pathlib.PurePosixPath(endpoint["endpoint"]["address"]["pipe"]["path"])
    socket = folder / service["listeners"]["filter"]["unix"]
    problems = [] if pipe == socket else [f"cluster {name} calls {pipe}, the sidecar listens on {socket}"]
    protocol = cluster["typed_extension_protocol_options"][istio.HTTP_OPTIONS]["explicit_http_config"]
    if "connection_keepalive" not in protocol.get("http2_protocol_options", {}):
        problems.append(f"cluster {name} has no HTTP/2 keep-alive: a stopped sidecar would hang every held call")
    threshold = cluster["circuit_breakers"]["thresholds"][0]
    for field in ("max_pending_requests", "max_requests"):
        if threshold.get(field, 1024) < LEAST_HELD_REQUESTS:
            problems.append(f"cluster {name}: {field} is under {LEAST_HELD_REQUESTS}, a full queue would overflow it")
    return problems


def pool_problems(hcm, plugin, service):
    pools = {pool["name"] for pool in service["pools"]}
    named = {route["pool"] for route in plugin["routes"] if route.get("pool")}
    matches = [route["match"] for host in hcm["route_config"]["virtual_hosts"] for route in host["routes"]]
    headers = [header for match in matches for header in match.get("headers", [])]
    named |= {header["string_match"]["exact"] for header in headers if header["name"] == "x-pool"}
    return [f"{name!r} is no pool of the sidecar's configuration" for name in sorted(named - pools)]
