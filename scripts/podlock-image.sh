#!/bin/sh
# `podlock-image.sh NAME` makes an image of the podlock in this directory, without a registry: cargo builds the program
# here, and compose/Dockerfile's stage `prebuilt` wraps it.
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
cp "${CARGO_TARGET_DIR:-target}/debug/podlock" "$work/podlock"
docker build --quiet --target prebuilt -f compose/Dockerfile -t "$1" "$work" >/dev/null
