#!/bin/sh
# `ensure-program.sh PROGRAM PACKAGE` makes sure that PROGRAM is in PATH.
#
# If it is, this changes nothing and needs no rights. Otherwise it installs PACKAGE of Debian or Ubuntu, as root or by
# sudo. It is for packages that start no service. If it cannot install the package, it says what to install, and fails.
set -eu

# shellcheck source=scripts/lib/install.sh
. "$(dirname "$0")/lib/install.sh"

program=$1
package=$2
packages="Debian, Ubuntu: $package"

found() {
    command -v "$program" >/dev/null 2>&1
}

if found; then
    exit 0
fi

must_be_able_to_install "$program" "$package" "$packages"
say "no $program found; installing the package $package by apt-get, as root"
install_package "$package" "$packages"

found || fail "the package $package is installed, but has no program $program"
say "$package is installed"
