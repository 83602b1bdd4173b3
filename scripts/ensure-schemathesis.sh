#!/bin/sh
# Makes sure that schemathesis is in target/tools: a tester of HTTP interfaces from PyPI, which tests/openapi runs.
#
# If it is, this changes nothing and needs no network. Otherwise it makes a virtual environment of Python and installs
# the version below into it, as this user. Nothing outside of target/ changes, except that the package python3-venv of
# Debian or Ubuntu is installed where Python cannot make an environment. If this fails, it says why.
set -eu

# shellcheck source=scripts/lib/install.sh
. "$(dirname "$0")/lib/install.sh"

# The test reads this line.
version=4.32.5
tools=${CARGO_TARGET_DIR:-$(dirname "$0")/../target}/tools
place=$tools/schemathesis-$version

if [ -x "$place/bin/schemathesis" ]; then
    exit 0
fi

if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    packages='Debian, Ubuntu: python3-venv'
    must_be_able_to_install 'python3 that can make virtual environments' python3-venv "$packages"
    install_package python3-venv "$packages"
fi

say "no schemathesis $version found; installing it from PyPI into $place"
mkdir -p "$tools"
# What is left of an installation that was cut short is removed: it would look like a whole one. A kill leaves it; then
# remove the folder by hand.
rm -rf "$place"
trap 'rm -rf "$place"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$place" || fail "python3 cannot make a virtual environment in $place"
"$place/bin/pip" install --quiet --disable-pip-version-check --retries 2 --timeout 20 "schemathesis==$version" ||
    fail "pip could not install schemathesis $version, see above; PyPI must be reached for that, once"
"$place/bin/schemathesis" --version >/dev/null || fail "schemathesis $version is installed, and does not start"
trap - EXIT
say "schemathesis $version is installed"
