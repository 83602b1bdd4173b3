#!/bin/sh
# Sees to it that the program pgbouncer is there, in PATH or /usr/sbin: some tests put it before the database.
#
# Where it is found, this changes nothing and needs no rights. Otherwise it installs the package `pgbouncer` of Debian
# or Ubuntu, as root or by sudo, and keeps its service from running, now and after a reboot. A pgbouncer that runs
# already is left alone. Where it cannot install, it says what to install, and fails.
set -eu

policy=/usr/sbin/policy-rc.d

say() {
    printf 'ensure-pgbouncer: %s\n' "$*" >&2
}

fail() {
    say "$*"
    exit 1
}

found() {
    command -v pgbouncer >/dev/null 2>&1 || [ -x /usr/sbin/pgbouncer ]
}

running() {
    grep -lsx pgbouncer /proc/[0-9]*/comm >/dev/null
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
    fail 'no pgbouncer found, and no apt-get to install it; install the package pgbouncer and try again'
if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null 2>&1; then
    fail 'no pgbouncer found, and no root or sudo to install it; as root: apt-get install pgbouncer'
fi
say 'no pgbouncer found; installing the package pgbouncer by apt-get, as root, without starting its service'

ran_before=no
if running; then
    ran_before=yes
fi

# Debian asks this file before a package starts a service. If there is one, as in container images, it stays as it
# is. Ours speaks of pgbouncer only, so it does no harm even if this script is killed before it removes it.
if ! [ -e "$policy" ]; then
    trap remove_policy EXIT
    trap 'exit 1' HUP INT TERM
    as_root tee "$policy" >/dev/null <<'POLICY' || fail 'cannot become root; as root: apt-get install pgbouncer'
#!/bin/sh
# Put here by podlock's scripts/ensure-pgbouncer.sh while it installs pgbouncer; remove it if you find it.
case " $* " in
    *' pgbouncer '* | *' pgbouncer.service '*) exit 101 ;;
    *) exit 0 ;;
esac
POLICY
    as_root chmod 755 "$policy"
fi

# Lists that are missing, as in a new container image, or old are fetched; others are taken as they are.
if ! apt-cache show pgbouncer >/dev/null 2>&1; then
    apt update || true
fi
apt install -y --no-install-recommends pgbouncer || {
    say 'trying again with fresh package lists'
    apt update && apt install -y --no-install-recommends pgbouncer
} || fail 'apt-get could not install the package pgbouncer, see above; install it by hand'

# The package enables its service for the next boot.
as_root update-rc.d pgbouncer disable >/dev/null 2>&1 ||
    as_root systemctl disable pgbouncer >/dev/null 2>&1 ||
    say 'could not disable the service pgbouncer; it may start at the next boot'
if [ "$ran_before" = no ] && running; then
    as_root invoke-rc.d pgbouncer stop >/dev/null 2>&1 ||
        say 'the package has started pgbouncer, and it could not be stopped; stop it by hand'
fi

found || fail 'the package pgbouncer is installed, but has no program pgbouncer'
say 'pgbouncer is installed'
