#!/bin/sh
# `podlock-image.sh NAME` makes an image of the podlock in this directory, without a registry: cargo builds the program
# here, and is put on compose/Dockerfile's stage `runtime`.
#
# The dev profile and all features are those of the tests, so that nothing but the program itself is compiled for this.
# An image for others is made by compose/Dockerfile as a whole, from the release profile.
set -eu

cd "$(dirname "$0")/.."

: "${CARGO:=cargo}"
"$CARGO" rustc --all-features --bin podlock -- -C target-feature=+crt-static

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
docker build --quiet --target runtime -f compose/Dockerfile -t podlock-test-runtime "$work" >/dev/null
cp "${CARGO_TARGET_DIR:-target}/debug/podlock" "$work/podlock"
printf 'FROM podlock-test-runtime\nCOPY podlock /usr/local/bin/podlock\n' >"$work/Dockerfile"
docker build --quiet -t "$1" "$work" >/dev/null
