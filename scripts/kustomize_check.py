"""Builds what operators apply with the real `kubectl kustomize`, in a copy of the folders, and looks at the result."""

import json
import pathlib
import re
import shutil
import subprocess
import tempfile

import yaml

from istio_bootstrap import UNSET_SECRET, ManifestError
from manifests import ROOT

KUBECTL = ROOT / ".tools/bin/kubectl"
FOLDERS = ("istio", "k8s", "production")
SECRET_FILE = "istio/route-secret.env"
BY_DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")
# Istio puts its own image in its place.
INJECTED = "auto"


def built(folder, secret=None, change=lambda root: None):
    """What `kubectl apply -k` would send, of a copy of our folders in which `change` changed something."""
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        for name in FOLDERS:
            shutil.copytree(ROOT / name, root / name)
        (root / SECRET_FILE).unlink(missing_ok=True)
        if secret:
            (root / SECRET_FILE).write_text(f"route_secret={secret}\n")
        change(root)
        done = subprocess.run([KUBECTL, "kustomize", root / folder], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise ManifestError(f"kubectl kustomize {folder}: {done.stderr.strip()[-300:]}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def edit(file, *changes):
    text = file.read_text()
    for old, new in changes:
        if old not in text:
            raise ManifestError(f"{file.name} does not say {old!r}")
        text = text.replace(old, new)
    file.write_text(text)


def is_refused(build):
    try:
        build()
    except ManifestError:
        return True
    return False


# --- The secret of the routes ---


def secret_problems(secret):
    problems = [] if is_refused(lambda: built("k8s")) else ["k8s/ builds without a secret for the routes"]
    for kind, change in (("EnvoyFilter", lambda root: None), ("WasmPlugin", take_plugin)):
        resources = built("k8s", secret, change)
        problems += [f"with the {kind} {problem}" for problem in secret_places(resources, kind, secret)]
    return problems


def take_plugin(root):
    """What istio/kustomization.yaml says to do where EnvoyFilter is not to be had."""
    text = (root / "istio/kustomization.yaml").read_text()
    text = text.replace("  - envoyfilter.yaml", "  - wasmplugin.yaml")
    text = re.sub(r"      # JSON in a string.*?index: 3\}\n", "", text, flags=re.DOTALL)
    text = text.replace("      # - select", "      - select").replace("      #   fieldPaths", "        fieldPaths")
    (root / "istio/kustomization.yaml").write_text(text)


def secret_places(resources, kind, secret):
    [filter_resource] = [document for document in resources if document["kind"] == kind]
    [service] = [document for document in resources if document["kind"] == "VirtualService"]
    if kind == "WasmPlugin":
        found = filter_resource["spec"]["pluginConfig"]["route_secret"]
    else:
        [patch] = [each for each in filter_resource["spec"]["configPatches"] if each["applyTo"] == "HTTP_FILTER"]
        configuration = patch["patch"]["value"]["typed_config"]["config"]["configuration"]["value"]
        found = json.loads(configuration)["route_secret"]
    problems = [] if found == secret else [f"the filter's secret is {found!r}"]
    asked = [match["headers"]["x-sluice-route"]["exact"] for rule in service["spec"]["http"] for match in rule["match"]]
    problems += [f"a route asks for {value!r}" for value in asked if value != secret]
    holders = [document["kind"] for document in resources if secret in json.dumps(document)]
    if sorted(holders) != sorted([kind, "VirtualService"]):
        problems.append(f"the secret is in {holders}")
    return problems + ([f"{UNSET_SECRET} is left"] if UNSET_SECRET in json.dumps(resources) else [])


# --- Namespaces ---


def namespace_problems(secret):
    """Every resource names its namespace: there is no common one, and `kubectl` would take the user's own."""
    resources = [document for document in built("k8s", secret) if document["kind"] != "Namespace"]
    homeless = [document for document in resources if not document["metadata"].get("namespace")]
    return [f"{document['kind']} {document['metadata']['name']} names no namespace" for document in homeless]


# --- Images ---


def image_problems(resources):
    """Every container's image that is not named by a digest."""
    images = sorted(set(images_of(resources)) - {INJECTED})
    return [f"{image} is not named by a digest" for image in images if not BY_DIGEST.fullmatch(image)]


def images_of(node):
    if isinstance(node, list):
        return [image for item in node for image in images_of(item)]
    if not isinstance(node, dict):
        return []
    own = [node["image"]] if isinstance(node.get("image"), str) else []
    return own + [image for value in node.values() for image in images_of(value)]


def production_problems(secret):
    """That production/ has a field for each digest and that the check refuses what stands there until it is one."""
    file = "production/kustomization.yaml"
    digest = ("digest: SET-ME", f"digest: sha256:{'0' * 64}")
    with_digests = built("production", secret, lambda root: edit(root / file, digest))
    problems = image_problems(with_digests)
    if not with_digests:
        problems.append("production/ builds nothing")
    for what, change in (("as it is", None), ("with tags", (digest[0], "newTag: 1.0.0"))):
        resources = built("production", secret, lambda root: edit(root / file, change) if change else None)
        if len(image_problems(resources)) != 2:
            problems.append(f"production/ {what} is not refused for both images")
    return problems


# --- Redis ---


def tls_problems(secret):
    """That the component of k8s/redis-tls closes the plain port, and mounts all that it names."""
    component = ("# components:\n#   # TLS between the gateway and Redis.\n#   -", "components:\n  -")
    resources = built("production", secret, lambda root: edit(root / "production/kustomization.yaml", component))
    [redis] = [document for document in resources if document["kind"] == "StatefulSet"]
    [container] = redis["spec"]["template"]["spec"]["containers"]
    command = container["command"]
    problems = []
    for option, value in (("--port", "0"), ("--tls-port", "6379")):
        if option not in command or command[command.index(option) + 1] != value:
            problems.append(f"Redis is not started with {option} {value}")
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    probes = [container[name]["exec"]["command"] for name in ("readinessProbe", "livenessProbe")]
    files = [word for words in (command, *probes) for word in words if word.startswith("/etc/")]
    missing = [file for file in files if not any(file.startswith(mount + "/") for mount in mounts)]
    problems += [f"{file} is not mounted" for file in missing]
    return problems + [f"the probe {probe} does not speak TLS" for probe in probes if "--tls" not in probe]


def rights_problems(resources):
    """Redis' user in k8s/ has the rights that docs/LEDGER.md lists, word for word."""
    documented = re.search(r"^    user sluice on >PASSWORD (.+)$", (ROOT / "docs/LEDGER.md").read_text(), re.MULTILINE)
    [redis] = [document for document in resources if document["kind"] == "StatefulSet"]
    command = redis["spec"]["template"]["spec"]["containers"][0]["command"]
    rights = command[command.index("#$(PASSWORD_SHA256)") + 1:]
    if not documented or rights != documented[1].split():
        return [f"docs/LEDGER.md says {documented and documented[1]}, k8s/redis.yaml {' '.join(rights)}"]
    return []
