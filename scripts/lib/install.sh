# shellcheck shell=sh
# How scripts/ensure-*.sh install a package of Debian or Ubuntu. They source this file, which defines functions only.
#
# Each message begins with the name of the script that runs.

say() {
    printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2
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

# Waits for another apt or dpkg for at most two minutes: an unattended upgrade takes about one. It asks no questions,
# and restarts no service of others.
apt() {
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get -qq -o DPkg::Lock::Timeout=120 "$@" </dev/null >&2
}

# `must_be_able_to_install WHAT PACKAGE PACKAGES` fails, and says what to install by hand, where nothing can install
# PACKAGE. WHAT is what was not found, and PACKAGES says how the package is called on which systems.
must_be_able_to_install() {
    command -v apt-get >/dev/null 2>&1 ||
        fail "no $1 found, and no apt-get to install it; install it ($3) and try again"
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null 2>&1; then
        fail "no $1 found, and no root or sudo to install it; as root: apt-get install $2"
    fi
}

# `install_package PACKAGE PACKAGES` installs PACKAGE, and fails where it cannot.
install_package() {
    # Package lists that are missing (as in a new container image) or too old are fetched. Others are used as they are.
    if ! apt-cache show "$1" >/dev/null 2>&1; then
        apt update || true
    fi
    apt install -y --no-install-recommends "$1" || {
        say 'trying again with fresh package lists'
        apt update && apt install -y --no-install-recommends "$1"
    } || fail "apt-get could not install the package $1, see above; install it by hand ($2)"
}
