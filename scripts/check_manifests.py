"""Checks everything in envoy/, istio/ and k8s/ that can be checked without a cluster.

    .tools/venv/bin/python scripts/check_manifests.py

  - Kubernetes' own kinds against its schemas, custom ones against their CRDs (without the CEL rules in them);
  - that what names something (selectors, volumes, sockets, pools, times) names something that is there;
  - every piece of Envoy configuration, those inside Istio's resources too, with `envoy --mode validate`, which also
    starts the filter with its configuration;
  - the quota service's configurations with `quota-service check-config`.

With `--emit-envoyfilter-bootstrap OUT` or `--emit-wasmplugin-bootstrap OUT` it writes the bootstrap that a gateway
would run with those resources, to be started by the end-to-end tests, and checks nothing.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jsonschema
import kubernetes_validate
import yaml

import istio_bootstrap as istio
from istio_bootstrap import ManifestError, milliseconds

ROOT = pathlib.Path(__file__).resolve().parent.parent
WASM = ROOT / "target/wasm32-wasip1/release/sluice_filter.wasm"
CRD_FILES = ["istio-crd-all.gen.yaml", "monitoring.coreos.com_servicemonitors.yaml"]
# Envoy's own, where a configuration says nothing.
ENVOY_STREAM_IDLE_MS = 300_000
ENVOY_READ_BYTES = 1 << 20
ENVOY_STREAM_WINDOW_BYTES = 1 << 24
# Beside a full body and what one read may add to it.
BUFFER_SPARE_BYTES = 64
# Every call in the queue is a request that Envoy holds open towards the sidecar.
LEAST_HELD_REQUESTS = 65_536


class Report:
    """What was checked, printed as it happens."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def check(self, what, problems):
        """`problems` is a list, or a function that returns one; if it cannot even be found out, that is one too."""
        try:
            problems = problems() if callable(problems) else problems
        except ManifestError as error:
            problems = [str(error)]
        except (LookupError, StopIteration, TypeError, ValueError) as error:
            problems = [f"is not built as this script expects: {type(error).__name__} {error}"]
        self.passed += not problems
        self.failed += bool(problems)
        print(f"{'FAIL' if problems else 'ok  '} {what}")
        for problem in problems:
            print(f"       {problem}")

    def skip(self, what, why):
        self.skipped += 1
        print(f"skip {what}: {why}")


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


# --- Schemas ---


def check_schemas(report, everything):
    version = kubernetes_validate.latest_version()
    folder = pathlib.Path(os.environ.get("SLUICE_TEST_DATA", ROOT / "../shared/data")) / "crds"
    crds = read_crds(folder) if folder.is_dir() else None
    for path, document in everything:
        group = document["apiVersion"].rpartition("/")[0]
        if not is_custom(group):
            what = f"{title(path, document)} fits Kubernetes {version}"
            report.check(what, kubernetes_problems(document, version))
        elif crds is None:
            report.skip(title(path, document), f"no CRDs in {folder} (set SLUICE_TEST_DATA)")
        else:
            report.check(f"{title(path, document)} fits its CRD", crd_problems(document, crds))


def is_custom(group):
    """Kubernetes' own groups have no dot, or end in `k8s.io`."""
    return "." in group and not group.endswith("k8s.io")


def kubernetes_problems(document, version):
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError as error:
        return [error.message]
    return []


def read_crds(folder):
    """(group/version, kind) → schema in which unknown fields are errors."""
    schemas = {}
    for crd in (crd for file in CRD_FILES for crd in yaml.safe_load_all((folder / file).read_text()) if crd):
        for version in crd["spec"]["versions"]:
            key = (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"])
            schema = strict(version["schema"]["openAPIV3Schema"])
            # The API server knows these itself; a CRD only names them.
            schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}}
            schemas[key] = schema
    return schemas


def strict(schema):
    """A CRD's schema as JSON schema. Rules under `oneOf` and the like only narrow what stands beside them."""
    schema = dict(schema)
    if schema.pop("x-kubernetes-int-or-string", False):
        schema["type"] = ["integer", "string"]
    if schema.pop("nullable", False) and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
    if "properties" in schema:
        schema["properties"] = {name: strict(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    if isinstance(schema.get("items"), dict):
        schema["items"] = strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        schema["additionalProperties"] = strict(schema["additionalProperties"])
    return schema


def crd_problems(document, crds):
    schema = crds.get((document["apiVersion"], document["kind"]))
    if schema is None:
        return [f"no CRD for {document['apiVersion']} {document['kind']}"]
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{'.'.join(map(str, error.path))}: {error.message[:300]}" for error in errors]


# --- What names something ---


def check_references(report, everything):
    for folder in (ROOT / "istio", ROOT / "k8s"):
        report.check(f"{folder.name}/kustomization.yaml lists what is there", lambda: kustomization_problems(folder))
    workloads = [d for _, d in everything if d["kind"] in ("Deployment", "StatefulSet")]
    pods = [workload["spec"]["template"] for workload in workloads]
    for workload in workloads:
        name = f"{workload['kind']} {workload['metadata']['name']}"
        report.check(f"{name} mounts volumes that it has", volume_problems(workload))
    for path, document in everything:
        wanted = wanted_labels(document)
        if wanted:
            found = any(wanted.items() <= pod["metadata"]["labels"].items() for pod in pods)
            report.check(f"{title(path, document)} selects a pod", [] if found else [f"none has the labels {wanted}"])
    report.check("ServiceMonitor sluice finds a port and keeps its labels", lambda: monitor_problems(everything))


def kustomization_problems(folder):
    [document] = documents(folder / "kustomization.yaml")
    listed = set(document["resources"])
    generated = [file for entry in document.get("configMapGenerator", []) for file in entry["files"]]
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
    field |= {"NetworkPolicy": ("podSelector", "matchLabels")}
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
    if wasm.get("failure_policy") != "FAIL_RELOAD":
        problems.append("the filter's failure policy is not FAIL_RELOAD: one trap would stop or open it for good")
    return problems


def time_problems(hcm, plugin, service):
    queue = service["queue"]["timeout_ms"]
    longest = service["ledger"]["longest_request_ms"]
    idle = milliseconds(hcm.get("stream_idle_timeout", f"{ENVOY_STREAM_IDLE_MS}ms"))
    problems = []
    if idle <= queue:
        problems.append(f"stream_idle_timeout ({idle} ms) ends calls that wait up to {queue} ms in the queue")
    if plugin["service"]["timeout_ms"] <= queue:
        problems.append(f"service.timeout_ms must be over queue.timeout_ms ({queue}), or the filter gives up first")
    duration = hcm.get("common_http_protocol_options", {}).get("max_stream_duration")
    if duration and milliseconds(duration) != longest:
        problems.append(f"max_stream_duration ({duration}) is not ledger.longest_request_ms ({longest})")
    if not duration:
        problems += [
            f"nothing ends a call after ledger.longest_request_ms ({longest}): route timeout {route['timeout']}"
            for route in routes_of(hcm)
            if not 0 < milliseconds(route["timeout"]) <= longest - queue
        ]
    if any("retry_policy" in route for route in routes_of(hcm)):
        problems.append("a route retries: that runs a second call on one slot")
    return problems


def routes_of(hcm):
    return [route["route"] for host in hcm["route_config"]["virtual_hosts"] for route in host["routes"]]


def mode_problems(wasm, plugin, listener, hcm):
    stops = wasm.get("allow_on_headers_stop_iteration", False)
    if (plugin["mode"] == "body") != stops:
        return [f"mode {plugin['mode']} with allow_on_headers_stop_iteration {stops}: calls would hang"]
    return buffer_problems(plugin, listener, hcm) if plugin["mode"] == "body" else []


def buffer_problems(plugin, listener, hcm):
    """Where Envoy would answer 413 by itself, because a body outgrows its buffer before the filter has seen it."""
    http2 = hcm.get("http2_protocol_options", {})
    read = listener.get("per_connection_buffer_limit_bytes", ENVOY_READ_BYTES)
    window = http2.get("initial_stream_window_size", ENVOY_STREAM_WINDOW_BYTES)
    least = plugin["body"]["max_bytes"] + max(read, window) + BUFFER_SPARE_BYTES
    problems = []
    for host in hcm["route_config"]["virtual_hosts"]:
        limits = [buffer_limit(host, route) for route in host["routes"]]
        problems += [
            f"request_body_buffer_limit of {host['name']} ({limit}) is under {least}: body.max_bytes, the larger of "
            f"per_connection_buffer_limit_bytes ({read}) and initial_stream_window_size ({window}), and 64"
            for limit in sorted(set(limits))
            if limit < least
        ]
        if not any(route["match"] == {"prefix": "/"} for route in host["routes"]):
            problems.append(f"{host['name']} has no route for calls without tags, so they are held without its limit")
    return problems


def buffer_limit(host, route):
    """The route's own or its host's. Envoy takes it from routes to a cluster only, and without it the listener's."""
    field = "request_body_buffer_limit"
    return route.get(field, host.get(field, 0)) if "route" in route else 0


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


# --- Real Envoy, real quota-service ---


def bootstraps(everything, listen=18080, upstream=("127.0.0.1", 8000), admin=0):
    """Of our two Istio forms, by name: a function each, so that what is wrong in one does not hide the other."""
    def base():
        return istio.gateway_bootstrap(one(everything, "VirtualService"), listen, upstream, admin)

    def envoyfilter():
        return istio.apply_envoyfilter(base(), one(everything, "EnvoyFilter"))

    def wasmplugin():
        names = ("WasmPlugin", "ServiceEntry", "DestinationRule")
        return istio.apply_wasmplugin(base(), *(one(everything, name) for name in names))

    return {"istio/envoyfilter.yaml": envoyfilter, "istio/wasmplugin.yaml": wasmplugin}


def check_envoy(report, everything):
    envoy = find_envoy()
    # With each the sidecar's configuration and the folder that the sidecar sees it in.
    shipped = {"envoy/envoy.yaml": (own_bootstrap, "envoy/quota-service.yaml", pathlib.PurePosixPath("envoy"))}
    for name, build in bootstraps(everything).items():
        shipped[name] = (build, "k8s/config/quota-service.yaml", pathlib.PurePosixPath("/etc/sluice"))
    for name, (build, service, folder) in shipped.items():
        [settings] = documents(ROOT / service)
        report.check(f"{name} agrees with {service}", lambda: agreement_problems(build(), settings, folder))
        report.check(f"{name} is accepted by Envoy", lambda: envoy_problems(envoy, build()))
    if not WASM.exists():
        why = f"{relative(WASM)} is not built; an empty filter took its place"
        report.skip("the filter accepts its configuration in each of them", why)


def own_bootstrap():
    [bootstrap] = documents(ROOT / "envoy/envoy.yaml")
    return bootstrap


def find_envoy():
    """The one that `./justw setup` installs; SLUICE_ENVOY names another."""
    local = ROOT / ".tools/bin/envoy"
    return os.environ.get("SLUICE_ENVOY") or (str(local) if local.exists() else shutil.which("envoy"))


def envoy_problems(envoy, bootstrap):
    if not envoy:
        return ["there is no .tools/bin/envoy: run ./justw setup"]
    with tempfile.TemporaryDirectory() as folder:
        wasm = WASM
        if not wasm.exists():
            wasm = pathlib.Path(folder) / "empty.wasm"
            wasm.write_bytes(empty_filter())
        file = pathlib.Path(folder) / "bootstrap.json"
        file.write_text(json.dumps(istio.rebind(bootstrap, wasm=wasm)))
        command = [envoy, "--mode", "validate", "-c", str(file), "--log-level", "warning", "--disable-hot-restart"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    # Deprecated and ignored fields are warnings; what we ship has none.
    warnings = [line for line in done.stderr.splitlines() if "[warning]" in line and "deprecat" in line.lower()]
    return warnings + (done.stderr.splitlines()[-10:] if done.returncode else [])


def empty_filter():
    """The smallest module that Envoy takes for a filter: memory, an allocator, and the ABI's version."""

    def section(number, content):
        return bytes([number, len(content)]) + content

    def export(name, kind, index):
        return bytes([len(name)]) + name.encode() + bytes([kind, index])

    exports = [("memory", 2, 0), ("proxy_abi_version_0_2_1", 0, 0), ("proxy_on_memory_allocate", 0, 1)]
    return b"".join([
        b"\0asm\x01\0\0\0",
        section(1, b"\x02\x60\x00\x00\x60\x01\x7f\x01\x7f"),  # types: () → (), i32 → i32
        section(3, b"\x02\x00\x01"),  # two functions of those types
        section(5, b"\x01\x00\x02"),  # two pages of memory
        section(7, b"\x03" + b"".join(export(*each) for each in exports)),
        section(10, b"\x02\x02\x00\x0b\x05\x00\x41\x80\x08\x0b"),  # { } and { 1024 }
    ])


def check_quota_service(report):
    builds = [ROOT / "target" / profile / "quota-service" for profile in ("debug", "release")]
    binary = next((build for build in builds if build.exists()), None)
    if binary:
        report.check("quota-service check-config refuses a mistake", hollow_check_problems(binary))
    for name in ("envoy/quota-service.yaml", "k8s/config/quota-service.yaml"):
        [settings] = documents(ROOT / name)
        keys = [tenant["id"] for tenant in settings["tenants"] if tenant.get("keys")]
        report.check(f"{name} holds no keys", [f"{tenant} has some: they are the operator's" for tenant in keys])
        if binary is None:
            report.skip(f"{name} is accepted by quota-service", "it is not built (cargo build -p quota-service)")
        else:
            report.check(f"{name} is accepted by quota-service", check_config_problems(binary, ROOT / name))


def check_config_problems(binary, file):
    done = subprocess.run([binary, "check-config", "--config", file], capture_output=True, text=True, timeout=60)
    said = (done.stdout + done.stderr).splitlines()
    return [f"exit code {done.returncode}", *said] if done.returncode else []


def hollow_check_problems(binary):
    """That `check-config` checks at all: a file of one mistake must end with 64, as its contract says."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "mistake.yaml"
        file.write_text("version: 1000\n")
        done = subprocess.run([binary, "check-config", "--config", file], capture_output=True, timeout=60)
    return [] if done.returncode == 64 else [f"exit code {done.returncode} for a file that says `version: 1000`"]


# --- The command line ---


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--emit-envoyfilter-bootstrap", metavar="OUT", type=pathlib.Path)
    which.add_argument("--emit-wasmplugin-bootstrap", metavar="OUT", type=pathlib.Path)
    parser.add_argument("--listen", metavar="PORT", type=int, default=8080, help="where the gateway takes calls")
    parser.add_argument("--admin", metavar="PORT", type=int, default=0, help="Envoy's admin; 0: any free port")
    parser.add_argument("--upstream", metavar="HOST:PORT", default="127.0.0.1:8000", help="an address, not a name")
    parser.add_argument("--sidecar-socket", metavar="PATH", type=pathlib.Path)
    parser.add_argument("--wasm", metavar="PATH", type=pathlib.Path, default=WASM)
    return parser.parse_args()


def emit(chosen, name, out):
    upstream = chosen.upstream.rsplit(":", 1)
    bootstrap = bootstraps(resources(), chosen.listen, upstream, chosen.admin)[name]()
    out.write_text(json.dumps(istio.rebind(bootstrap, chosen.sidecar_socket, chosen.wasm), indent=2) + "\n")
    return 0


def check_all():
    report = Report()
    everything = resources()
    check_schemas(report, everything)
    check_references(report, everything)
    check_envoy(report, everything)
    check_quota_service(report)
    skipped = f", {report.skipped} skipped" if report.skipped else ""
    print(f"{report.passed} passed, {report.failed} failed{skipped}")
    return 1 if report.failed else 0


def main():
    chosen = arguments()
    try:
        if chosen.emit_envoyfilter_bootstrap:
            return emit(chosen, "istio/envoyfilter.yaml", chosen.emit_envoyfilter_bootstrap)
        if chosen.emit_wasmplugin_bootstrap:
            return emit(chosen, "istio/wasmplugin.yaml", chosen.emit_wasmplugin_bootstrap)
        return check_all()
    except ManifestError as error:
        print(f"FAIL {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
