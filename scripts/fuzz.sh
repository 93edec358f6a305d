#!/usr/bin/env bash
# Fuzzes the filter's readers with libFuzzer: `fuzz.sh TARGET|all SECONDS`. The small corpora in filter/fuzz/seeds are
# where it begins; what it finds on the way stays in filter/fuzz/corpus, which git ignores.
#
# Runs on the stable toolchain: coverage needs no nightly, only the sanitizers do, and this is safe code but for calls
# into Envoy, which no target reaches.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
tools="$PWD/.tools"
if ! "$tools/bin/cargo-fuzz" --version 2>/dev/null | grep -qF ' 0.13.2'; then
    cargo install --locked --root "$tools" cargo-fuzz@0.13.2
fi
targets=("$1")
if [ "$1" = all ]; then
    mapfile -t targets < <(basename -s .rs filter/fuzz/fuzz_targets/*.rs)
fi
# A target of its own, so that ordinary builds keep theirs.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/fuzz"
cd filter
# `cargo fuzz` cannot be given this itself.
cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null
for target in "${targets[@]}"; do
    printf '\n=== %s, for %s s\n' "$target" "$2"
    mkdir -p "fuzz/corpus/$target"
    PATH="$tools/bin:$PATH" cargo fuzz run --sanitizer none "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$2" -max_len=16384 -rss_limit_mb=1024 -print_final_stats=1 -verbosity=0
done
