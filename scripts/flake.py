#!/usr/bin/env python3
"""Runs the end-to-end tests again and again beside a process that keeps a core busy, and names what failed.

    flake.py [ROUNDS] [WORD...] [--jobs N] [--idle]

ROUNDS is 20 unless given. A word that is in the name of a file of tests chooses it; of any other word only tests run
that have it in their names. `--jobs` runs so many files at once, `--idle` leaves the core alone.

Everything that a file of tests printed lies in target/flake/ROUND/FILE.log. The exit code is 1 if anything failed.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "flake"
# Packages whose tests start real programs.
PACKAGES = {"e2e", "quota-service"}
# No file of tests runs for a third of it, even beside others.
HANGS_AFTER_S = 900
# Ends with its parent, however that ends.
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(1_000_000))"
# Of files that run now.
RUNNING = set()
FAILED = re.compile(r"^test (\S+)(?: - should panic)? \.\.\. FAILED$", re.MULTILINE)
PASSED = re.compile(r"^test result: .*? (\d+) passed", re.MULTILINE)


def build():
    """Executables by the name of their file of tests, each with the folder that cargo runs it in."""
    command = ["cargo", "test", "--locked", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    found = {}
    for line in output.splitlines():
        message = json.loads(line)
        if message.get("reason") != "compiler-artifact" or not message.get("executable"):
            continue
        manifest, target = Path(message["manifest_path"]), message["target"]
        package = re.search(r'^name = "([^"]+)"', manifest.read_text(), re.MULTILINE).group(1)
        if package in PACKAGES and message["profile"]["test"] and "bin" not in target["kind"]:
            found[target["name"]] = (message["executable"], manifest.parent)
    return found


def end(process):
    # What tests start ends with them.
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(file, executable, folder, words, log):
    """What failed in one run of a file: names of tests, or why there are none."""
    environment = os.environ | {"SLUICE_NEEDS_ALL_ENGINES": "1"}
    with log.open("wb") as sink:
        # In a group of its own, which the terminal does not interrupt and `end` does.
        process = subprocess.Popen(
            [executable, *words], cwd=folder, env=environment, stdout=sink, stderr=sink, start_new_session=True
        )
        RUNNING.add(process)
        try:
            code = process.wait(HANGS_AFTER_S)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
            RUNNING.discard(process)
    text = log.read_text(errors="replace")
    failed = [f"{file}::{name}" for name in FAILED.findall(text)]
    if code is None:
        failed.append(f"{file} (did not end within {HANGS_AFTER_S} s)")
    elif code != 0 and not failed:
        failed.append(f"{file} (exit code {code})")
    passed = PASSED.search(text)
    return failed, int(passed.group(1)) if passed else 0


def round_of(number, files, words, jobs, failures):
    logs = LOGS / f"{number:02}"
    logs.mkdir(parents=True)
    began, passed, bad = time.monotonic(), 0, 0
    with ThreadPoolExecutor(jobs) as pool:
        running = {
            pool.submit(run, file, *where, words, logs / f"{file}.log"): logs / f"{file}.log"
            for file, where in files.items()
        }
        for run_of in running:
            try:
                failed, count = run_of.result()
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(RUNNING):
                    end(process)
                raise
            passed, bad = passed + count, bad + len(failed)
            for name in failed:
                failures[name].append(running[run_of])
                print(f"  round {number}: {name} failed, {running[run_of]}", flush=True)
    return passed, bad, time.monotonic() - began


def spent(seconds):
    return f"{int(seconds) // 60}m{int(seconds) % 60:02}s"


def report(failures, rounds):
    for name, logs in sorted(failures.items(), key=lambda failure: -len(failure[1])):
        print(f"{len(logs)} of {rounds}  {name}  {logs[-1]}")
    print(f"{len(failures)} tests failed at least once in {rounds} rounds" if failures else f"nothing failed in {rounds} rounds")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="rounds, then words that choose files or tests")
    parser.add_argument("--jobs", type=int, default=1, help="files of tests at once")
    parser.add_argument("--idle", action="store_true", help="keep no core busy")
    given = parser.parse_args()
    rounds = int(given.words.pop(0)) if given.words and given.words[0].isdigit() else 20
    return rounds, given.words, given.jobs, given.idle


def main():
    rounds, words, jobs, idle = arguments()
    files = build()
    chosen = {file: where for file, where in files.items() if any(word in file for word in words)}
    words = [word for word in words if not any(word in file for file in files)]
    files = dict(sorted((chosen or files).items()))
    print(f"{len(files)} files of tests, {rounds} rounds, {jobs} at once: {' '.join(files)}", flush=True)
    shutil.rmtree(LOGS, ignore_errors=True)
    failures, done = defaultdict(list), 0
    busy = None if idle else subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        for number in range(1, rounds + 1):
            passed, bad, seconds = round_of(number, files, words, jobs, failures)
            done = number
            print(f"round {number} of {rounds}: {passed} passed, {bad} failed in {spent(seconds)}", flush=True)
            if passed + bad == 0:
                sys.exit("no test has such a name")
    except KeyboardInterrupt:
        print("interrupted")
    finally:
        if busy:
            busy.kill()
            busy.wait()
    report(failures, done)
    sys.exit(1 if failures or done < rounds else 0)


if __name__ == "__main__":
    main()
