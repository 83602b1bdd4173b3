#!/bin/sh
# Sees to it that PostgreSQL's server programs, initdb and postgres, are where podlock looks for them:
# PODLOCK_PG_BIN, else /usr/lib/postgresql/*/bin, else `pg_config --bindir`, else PATH.
#
# Where they are found, this changes nothing and needs no rights. Otherwise it installs the package `postgresql` of
# Debian or Ubuntu, as root or by sudo, without the cluster and the daemon that the package makes by default. It leaves
# no configuration behind. Where it cannot install, it says what to install, and fails.
set -eu

packages='Debian and Ubuntu: postgresql; Fedora: postgresql-server; Arch, Alpine: postgresql'
drop_in_dir=/etc/postgresql-common/createcluster.d
drop_in=$drop_in_dir/zz-podlock.conf

say() {
    printf 'ensure-postgres: %s\n' "$*" >&2
}

fail() {
    say "$*"
    exit 1
}

has_server() {
    [ -n "$1" ] && [ -x "$1/initdb" ] && [ -x "$1/postgres" ]
}

found() {
    if [ -n "${PODLOCK_PG_BIN:-}" ]; then
        has_server "$PODLOCK_PG_BIN" && return
        fail "PODLOCK_PG_BIN=$PODLOCK_PG_BIN has no initdb and postgres; correct it or unset it"
    fi
    for dir in /usr/lib/postgresql/*/bin; do
        has_server "$dir" && return
    done
    has_server "$(pg_config --bindir 2>/dev/null || true)" && return
    for program in initdb postgres; do
        command -v "$program" >/dev/null 2>&1 || return 1
    done
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

remove_drop_in() {
    as_root rm -f "$drop_in"
    as_root rmdir "$drop_in_dir" 2>/dev/null || true
}

if found; then
    exit 0
fi

command -v apt-get >/dev/null 2>&1 ||
    fail "no PostgreSQL server found, and no apt-get to install one; install it ($packages) and try again"
if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null 2>&1; then
    fail "no PostgreSQL server found, and no root or sudo to install one; as root: apt-get install postgresql"
fi
say 'no PostgreSQL server found; installing the package postgresql by apt-get, as root, without a default cluster'

# Without this, the package makes a cluster and starts it on port 5432.
trap remove_drop_in EXIT
trap 'exit 1' HUP INT TERM
as_root mkdir -p "$drop_in_dir" || fail 'cannot become root; as root: apt-get install postgresql'
echo 'create_main_cluster = false' | as_root tee "$drop_in" >/dev/null

# Lists that are missing, as in a new container image, or old are fetched; others are taken as they are.
if ! apt-cache show postgresql >/dev/null 2>&1; then
    apt update || true
fi
apt install -y --no-install-recommends postgresql || {
    say 'trying again with fresh package lists'
    apt update && apt install -y --no-install-recommends postgresql
} || fail "apt-get could not install the package postgresql, see above; install it by hand ($packages)"

found || fail 'the package postgresql is installed, but has no initdb and postgres in /usr/lib/postgresql/*/bin'
say 'PostgreSQL is installed'
