# Everything one does with Sluice. `./justw RECIPE` runs these without `just` on the machine.

# Arguments reach a recipe as "$@", so spaces and quotes survive.
set positional-arguments

target := env("CARGO_TARGET_DIR", "target")
wasm := "--target wasm32-wasip1"

[private]
default:
    @{{ just_executable() }} --list --unsorted

# Install the pinned tools into .tools/; group `demo` leaves out what only tests need
setup group="test":
    @python3 scripts/setup.py "$1"

# `--locked` everywhere: what is built is what Cargo.lock says, or nothing.
# `--workspace` and never `-p`: cargo would choose other features for a part, and build most crates twice.

# Build the filter (always optimised) and the programs
build profile="dev": (setup "build")
    cargo build --locked --release {{ wasm }} -p sluice-filter
    cargo build --locked --workspace --bins --profile {{ profile }}

# Show it all on this machine: Envoy, the filter, the quota service, a model
demo *args: (setup "demo") build
    @exec {{ target }}/debug/demo "$@"

# Run the tests; arguments go to `cargo test`
test *args: setup build
    SLUICE_NEEDS_ALL_ENGINES=1 cargo test --locked --workspace "$@"

# Run the end-to-end tests so many times beside a busy core, and name what failed; words choose files or tests
flake *args: setup build
    @python3 scripts/flake.py "$@"

# Run the tests against Triton and LiteLLM too; the first time this installs 1.5 GB
e2e-full: (setup "full") build
    cargo test --locked -p e2e --features full --test triton --test litellm --test litellm_fields

# Measure one area, or `all`; `--quick` for seconds of each
bench area *args: setup (build "release")
    @exec {{ target }}/release/bench "$@"

# Run every benchmark for seconds, unoptimised, and fail where a figure is missing: no figure of it is to be relied on
bench-quick: setup build
    @exec {{ target }}/debug/bench all --quick

# Search the ledger protocol, every order of events within bounds; words choose scenes and mutants
model *names:
    cargo run --locked --release -p sluice-model -- "$@"

# Break whatever may break, under load, and tell in a line how that went; with words only the faults that bear one
faults *words: setup (build "release")
    @exec {{ target }}/release/faults "$@"

# Flood a gateway as a stranger and as a tenant, `--seconds` of each (or `--quick`), and measure what a known caller sees of it
attack *args: setup (build "release")
    @exec {{ target }}/release/attack "$@"

# Run one area's random tests for long: `queue`, 100,000 simulated runs, an hour; `ledger`, 100,000 calls, two minutes; `disconnects`, as many callers, ten minutes
soak area runs="100000":
    #!/usr/bin/env bash
    set -euo pipefail
    export SLUICE_NEEDS_ALL_ENGINES=1 SLUICE_SOAK_RUNS="$2"
    case "$1" in
        queue) cargo test --locked --release -p sluice-policy --test fair_queue -- --nocapture ;;
        ledger) cargo test --locked --release -p quota-service --test ledger_conformance -- --nocapture ;;
        disconnects)
            '{{ just_executable() }}' build
            cargo test --locked --workspace --test disconnects -- --nocapture
            ;;
        *) echo "no random tests of this name: $1" >&2; exit 64 ;;
    esac

# Fuzz one target of filter/fuzz, or `all` one after the other, so many seconds each
fuzz fuzz_target="all" seconds="60":
    @scripts/fuzz.sh "$1" "$2"

# Format the code
fmt:
    cargo fmt --all

# Check that the code is formatted
fmt-check:
    cargo fmt --all --check

# Lint natively, and once more as the wasm module sees the code
lint: (setup "build")
    cargo clippy --locked --workspace --all-targets -- -D warnings
    cargo clippy --locked {{ wasm }} -p sluice-filter -p sluice-policy -- -D warnings

# Validate what operators deploy: the files of envoy/, istio/, k8s/ and production/
manifests: setup build
    .tools/venv/bin/python scripts/check_manifests.py

# Check the dependencies: licenses, bans, sources, and known faults where this machine has a copy of their database
deny: (setup "deny")
    @scripts/deny.sh

# Run everything that must pass before a change lands
ci:
    .ci/run
