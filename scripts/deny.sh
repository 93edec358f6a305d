#!/usr/bin/env bash
# Checks the dependencies of Cargo.lock with cargo-deny by deny.toml.
#
# Advisories change without a commit here and need a database that this does not fetch. Where there is a copy of it, made
# by `.tools/bin/cargo-deny fetch db`, they are checked too; elsewhere the output says that they were not.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."

.tools/bin/cargo-deny --locked check bans licenses sources
database="${CARGO_HOME:-$HOME/.cargo}/advisory-dbs"
# cargo-deny makes the folder itself, and leaves it empty where it fetches nothing.
if compgen -G "$database/*/.git" >/dev/null || compgen -G "$database/*/HEAD" >/dev/null; then
    .tools/bin/cargo-deny --frozen check advisories
else
    echo "NOT CHECKED: advisories, because there is no copy of their database in $database"
fi
