"""Checks everything in envoy/, istio/ and k8s/ that can be checked without a cluster.

    .tools/venv/bin/python scripts/check_manifests.py

  - Kubernetes' own kinds against its schemas, custom ones against their CRDs (without the CEL rules in them);
  - that what names something (selectors, volumes, sockets, pools, times) names something that is there;
  - who may call what: gateways without the filter, model servers, what our own pods may reach (mesh_check.py);
  - what `kubectl kustomize` makes of the folders: the routes' secret, image digests, Redis' TLS (kustomize_check.py);
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
import re
import shutil
import subprocess
import sys
import tempfile

import jsonschema
import kubernetes_validate
import yaml

import istio_bootstrap as istio
import kustomize_check
import manifests
import mesh_check
import mesh_model
from istio_bootstrap import ManifestError
from manifests import ROOT, documents, one, resources, title

TARGET = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")
WASM = TARGET / "wasm32-wasip1/release/sluice_filter.wasm"
CRD_FILES = ["istio-crd-all.gen.yaml", "monitoring.coreos.com_servicemonitors.yaml"]


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
        what = f"{folder.name}/kustomization.yaml lists what is there"
        report.check(what, lambda: manifests.kustomization_problems(folder))
    workloads = [d for _, d in everything if d["kind"] in ("Deployment", "StatefulSet")]
    pods = [workload["spec"]["template"] for workload in workloads]
    for workload in workloads:
        name = f"{workload['kind']} {workload['metadata']['name']}"
        report.check(f"{name} mounts volumes that it has", manifests.volume_problems(workload))
    for path, document in everything:
        wanted = manifests.wanted_labels(document)
        if wanted:
            found = any(wanted.items() <= pod["metadata"]["labels"].items() for pod in pods)
            report.check(f"{title(path, document)} selects a pod", [] if found else [f"none has the labels {wanted}"])
    what = "ServiceMonitor sluice finds a port and keeps its labels"
    report.check(what, lambda: manifests.monitor_problems(everything))


# --- Who may call what ---


def check_mesh(report, everything):
    every = [document for _, document in everything]
    report.check("no gateway without the filter serves a route of ours", lambda: mesh_check.gateway_problems(every))
    report.check("only our gateway may call the model servers", lambda: mesh_check.model_problems(every))
    report.check("our pods reach what they need and no more", lambda: mesh_check.egress_problems(every))
    report.check("the form that was shipped once is refused", mesh_check.old_form_is_accepted)
    report.check("each damage to the policies is found", lambda: mesh_check.unnoticed_damages(every))


# --- What `kubectl apply -k` sends ---


def check_kustomize(report, everything):
    every = [document for _, document in everything]
    report.check("Redis' user has exactly the documented rights", lambda: kustomize_check.rights_problems(every))
    if not kustomize_check.KUBECTL.exists():
        report.skip("what kubectl builds of our folders", "there is no .tools/bin/kubectl (./justw setup)")
        return
    secret = mesh_check.SECRET
    report.check("the routes' secret gets where it belongs", lambda: kustomize_check.secret_problems(secret))
    report.check("every resource names its namespace", lambda: kustomize_check.namespace_problems(secret))
    report.check("production/ refuses images without a digest", lambda: kustomize_check.production_problems(secret))
    report.check("k8s/redis-tls leaves no plain port", lambda: kustomize_check.tls_problems(secret))


def check_production(folder):
    """Of an operator's own overlay, with a stand-in for the secret of its routes."""
    report = Report()
    build = lambda: kustomize_check.image_problems(kustomize_check.built(folder, mesh_check.SECRET))  # noqa: E731
    report.check(f"{folder} names every image by its digest", build)
    return 1 if report.failed else 0


# --- Real Envoy, real quota-service ---


def bootstraps(everything, secret, listen=18080, upstream=("127.0.0.1", 8000), admin=0):
    """Of our two Istio forms, by name: a function each, so that what is wrong in one does not hide the other."""
    everything = [(path, istio.with_route_secret(document, secret)) for path, document in everything]

    def base():
        gateway = mesh_check.our_gateway([document for _, document in everything])
        policies = [d for _, d in everything if d["kind"] == "AuthorizationPolicy" and mesh_model.selects(d, gateway)]
        bootstrap = istio.gateway_bootstrap(one(everything, "VirtualService"), policies, listen, upstream, admin)
        # Istio's agent gives it to Envoy as `--config-yaml`. What is built here has none of its fields, so merging is adding.
        [override] = documents(ROOT / "k8s/config/gateway-bootstrap.yaml")
        return bootstrap | override

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
    for name, build in bootstraps(everything, mesh_check.SECRET).items():
        shipped[name] = (build, "k8s/config/quota-service.yaml", pathlib.PurePosixPath("/etc/sluice"))
    for name, (build, service, folder) in shipped.items():
        [settings] = documents(ROOT / service)
        report.check(f"{name} agrees with {service}", lambda: manifests.agreement_problems(build(), settings, folder))
        report.check(f"{name} is accepted by Envoy", lambda: envoy_problems(envoy, build()))
    if not WASM.exists():
        why = f"{WASM} is not built; an empty filter took its place"
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
    builds = [TARGET / profile / "quota-service" for profile in ("debug", "release")]
    binary = next((build for build in builds if build.exists()), None)
    if binary:
        report.check("quota-service check-config refuses a mistake", hollow_check_problems(binary))
        what = "k8s/redis-tls names lines that quota-service accepts"
        report.check(what, lambda: tls_config_problems(binary))
    for name in ("envoy/quota-service.yaml", "k8s/config/quota-service.yaml"):
        [settings] = documents(ROOT / name)
        keys = [tenant["id"] for tenant in settings["tenants"] if tenant.get("keys")]
        report.check(f"{name} holds no keys", [f"{tenant} has some: they are the operator's" for tenant in keys])
        if binary is None:
            report.skip(f"{name} is accepted by quota-service", "it is not built (./justw build)")
        else:
            report.check(f"{name} is accepted by quota-service", check_config_problems(binary, ROOT / name))


def tls_config_problems(binary):
    """That the sidecar takes the lines that k8s/redis-tls tells operators to write."""
    text = (ROOT / "k8s/config/quota-service.yaml").read_text()
    comment = (ROOT / "k8s/redis-tls/kustomization.yaml").read_text()
    told = re.findall(r"^#   (redis:|  \S.*)$", comment, re.MULTILINE)
    plain = re.compile(r"^  redis_url: .*\n  redis_password_file: .*\n", re.MULTILINE)
    if len(told) != 4 or len(plain.findall(text)) != 1:
        raise ManifestError("k8s/redis-tls does not name four lines, or k8s/config has no two to replace")
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "tls.yaml"
        file.write_text(plain.sub("".join(f"  {line}\n" for line in told), text))
        return check_config_problems(binary, file)


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
    which.add_argument("--production", metavar="FOLDER", help="check that an overlay names its images by digest only")
    which.add_argument("--emit-wasmplugin-bootstrap", metavar="OUT", type=pathlib.Path)
    parser.add_argument("--listen", metavar="PORT", type=int, default=8080, help="where the gateway takes calls")
    parser.add_argument("--admin", metavar="PORT", type=int, default=0, help="Envoy's admin; 0: any free port")
    parser.add_argument("--upstream", metavar="HOST:PORT", default="127.0.0.1:8000", help="an address, not a name")
    parser.add_argument("--route-secret", metavar="SECRET", default=mesh_check.SECRET, help="what routes ask for")
    parser.add_argument("--sidecar-socket", metavar="PATH", type=pathlib.Path)
    parser.add_argument("--wasm", metavar="PATH", type=pathlib.Path, default=WASM)
    return parser.parse_args()


def emit(chosen, name, out):
    upstream = chosen.upstream.rsplit(":", 1)
    bootstrap = bootstraps(resources(), chosen.route_secret, chosen.listen, upstream, chosen.admin)[name]()
    out.write_text(json.dumps(istio.rebind(bootstrap, chosen.sidecar_socket, chosen.wasm), indent=2) + "\n")
    return 0


def check_all():
    report = Report()
    everything = resources()
    check_schemas(report, everything)
    check_references(report, everything)
    check_mesh(report, everything)
    check_kustomize(report, everything)
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
        if chosen.production:
            return check_production(chosen.production)
        return check_all()
    except ManifestError as error:
        print(f"FAIL {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
