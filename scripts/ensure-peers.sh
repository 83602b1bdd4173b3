#!/bin/sh
# Makes sure that target/tools has a Python with the peers that are written in it, for `make bench-peers`: procrastinate
# and PgQueuer, from PyPI.
#
# If it does, this changes nothing and needs no network. Otherwise it makes a virtual environment of Python and installs
# the versions below into it, as this user. Nothing outside of target/ changes, except that the package python3-venv of
# Debian or Ubuntu is installed where Python cannot make an environment. If this fails, it says why.
#
# With the argument `--print` it prints the path of that Python, and installs nothing.
set -eu

# shellcheck source=scripts/lib/install.sh
. "$(dirname "$0")/lib/install.sh"

# benches/peers/src/system.rs names the versions of the first two, and a test there compares them.
procrastinate=3.10.0
pgqueuer=1.6.0
asyncpg=0.32.0
psycopg=3.3.9
uvloop=0.23.0
tools=${CARGO_TARGET_DIR:-$(dirname "$0")/../target}/tools
place=$tools/peers-$procrastinate-$pgqueuer

if [ "${1:-}" = --print ]; then
    echo "$place/bin/python"
    exit 0
fi
if [ -x "$place/bin/python" ]; then
    exit 0
fi

# PgQueuer needs 3.11.
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    fail 'the peers need Python 3.11 or newer as python3'
fi
if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    packages='Debian, Ubuntu: python3-venv'
    must_be_able_to_install 'python3 that can make virtual environments' python3-venv "$packages"
    install_package python3-venv "$packages"
fi

say "no procrastinate $procrastinate and PgQueuer $pgqueuer found; installing them from PyPI into $place"
mkdir -p "$tools"
# What is left of an installation that was cut short is removed: it would look like a whole one. A kill leaves it; then
# remove the folder by hand.
rm -rf "$place"
trap 'rm -rf "$place"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$place" || fail "python3 cannot make a virtual environment in $place"
# psycopg without its C part needs the system's libpq; with `binary` it brings one.
"$place/bin/pip" install --quiet --disable-pip-version-check --retries 2 --timeout 20 \
    "procrastinate==$procrastinate" "pgqueuer==$pgqueuer" "asyncpg==$asyncpg" "psycopg[binary]==$psycopg" \
    "uvloop==$uvloop" ||
    fail "pip could not install procrastinate $procrastinate and PgQueuer $pgqueuer, see above; PyPI is needed, once"
"$place/bin/python" -c 'import asyncpg, pgqueuer, procrastinate, psycopg, uvloop' ||
    fail 'the peers are installed, and Python cannot import them'
trap - EXIT
say "procrastinate $procrastinate and PgQueuer $pgqueuer are installed"
