#!/bin/sh
# `ensure-daemon.sh PROGRAM PACKAGE` sees to it that PROGRAM is there, in PATH or /usr/sbin, whose package starts a service of
# the same name: tests start their own, as pgbouncer before the database and nginx before the pods.
#
# Where it is found, this changes nothing and needs no rights. Otherwise it installs PACKAGE of Debian or Ubuntu, as root
# or by sudo, and keeps its service from running, now and after a reboot. One that runs already is left alone. Where it
# cannot install, it says what to install, and fails.
set -eu

program=$1
package=$2
policy=/usr/sbin/policy-rc.d

say() {
    printf 'ensure-daemon: %s\n' "$*" >&2
}

fail() {
    say "$*"
    exit 1
}

found() {
    command -v "$program" >/dev/null 2>&1 || [ -x "/usr/sbin/$program" ]
}

running() {
    grep -lsx "$program" /proc/[0-9]*/comm >/dev/null
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

remove_policy() {
    as_root rm -f "$policy"
}

if found; then
    exit 0
fi

command -v apt-get >/dev/null 2>&1 ||
    fail "no $program found, and no apt-get to install it; install it (Debian, Ubuntu: $package) and try again"
if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null 2>&1; then
    fail "no $program found, and no root or sudo to install it; as root: apt-get install $package"
fi
say "no $program found; installing the package $package by apt-get, as root, without starting its service"

ran_before=no
if running; then
    ran_before=yes
fi

# Debian asks this file before a package starts a service. If there is one, as in container images, it stays as it
# is. Ours speaks of this service only, so it does no harm even if this script is killed before it removes it.
if ! [ -e "$policy" ]; then
    trap remove_policy EXIT
    trap 'exit 1' HUP INT TERM
    as_root tee "$policy" >/dev/null <<POLICY || fail "cannot become root; as root: apt-get install $package"
#!/bin/sh
# Put here by podlock's scripts/ensure-daemon.sh while it installs $package; remove it if you find it.
case " \$* " in
    *' $program '* | *' $program.service '*) exit 101 ;;
    *) exit 0 ;;
esac
POLICY
    as_root chmod 755 "$policy"
fi

# Lists that are missing, as in a new container image, or old are fetched; others are taken as they are.
if ! apt-cache show "$package" >/dev/null 2>&1; then
    apt update || true
fi
apt install -y --no-install-recommends "$package" || {
    say 'trying again with fresh package lists'
    apt update && apt install -y --no-install-recommends "$package"
} || fail "apt-get could not install the package $package, see above; install it by hand"

# The package enables its service for the next boot.
as_root update-rc.d "$program" disable >/dev/null 2>&1 ||
    as_root systemctl disable "$program" >/dev/null 2>&1 ||
    say "could not disable the service $program; it may start at the next boot"
if [ "$ran_before" = no ] && running; then
    as_root invoke-rc.d "$program" stop >/dev/null 2>&1 ||
        say "the package has started $program, and it could not be stopped; stop it by hand"
fi

found || fail "the package $package is installed, but has no program $program"
say "$package is installed"
