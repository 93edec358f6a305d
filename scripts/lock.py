#!/usr/bin/env python3
"""Writes scripts/locks/ anew after a pin in scripts/setup.py has changed: every package that pip brings, pinned, with
the SHA-256 of each of its artefacts, as the registry has them today. Needs `uv` on the PATH; look at the difference before
it is committed, because what stands there is what everybody installs.
"""

import subprocess
import sys

import setup

# Wheels only: building from source would fetch build tools that no hash is known of.
COMPILE = ["uv", "pip", "compile", "--quiet", "--only-binary", ":all:", "--generate-hashes", "--no-annotate"]
COMPILE += ["--no-header", "--python-version", "3.11", "-"]
HEADER = "# Written by scripts/lock.py; do not edit.\n"


def main() -> None:
    for lock, (pins, options) in setup.LOCKS.items():
        file = setup.LOCK_FOLDER / lock
        # What is there stays as it is unless a pin demands another: with it as output, uv prefers its versions.
        done = subprocess.run([*COMPILE, *options, "-o", str(file)], input="\n".join(pins), text=True)
        if done.returncode:
            sys.exit(done.returncode)
        file.write_text(HEADER + file.read_text().removeprefix(HEADER))


if __name__ == "__main__":
    main()
