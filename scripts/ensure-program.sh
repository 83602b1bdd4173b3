#!/bin/sh
# `ensure-program.sh PROGRAM PACKAGE` sees to it that PROGRAM is in PATH.
#
# Where it is, this changes nothing and needs no rights. Otherwise it installs PACKAGE of Debian or Ubuntu, as root or by
# sudo. It is for packages that start no service. Where it cannot install, it says what to install, and fails.
set -eu

program=$1
package=$2

say() {
    printf 'ensure-program: %s\n' "$*" >&2
}

fail() {
    say "$*"
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get -qq -o DPkg::Lock::Timeout=120 "$@" </dev/null >&2
}

if command -v "$program" >/dev/null 2>&1; then
    exit 0
fi

command -v apt-get >/dev/null 2>&1 ||
    fail "no $program found, and no apt-get to install it; install it (Debian, Ubuntu: $package) and try again"
if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null 2>&1; then
    fail "no $program found, and no root or sudo to install it; as root: apt-get install $package"
fi
say "no $program found; installing the package $package by apt-get, as root"

# Lists that are missing, as in a new container image, or old are fetched; others are taken as they are.
if ! apt-cache show "$package" >/dev/null 2>&1; then
    apt update || true
fi
apt install -y --no-install-recommends "$package" || {
    say 'trying again with fresh package lists'
    apt update && apt install -y --no-install-recommends "$package"
} || fail "apt-get could not install the package $package, see above; install it by hand"

command -v "$program" >/dev/null 2>&1 || fail "the package $package is installed, but has no program $program"
say "$package is installed"
