#!/bin/sh
# Makes sure that PostgreSQL's server programs, initdb and postgres, are where podlock looks for them:
# PODLOCK_PG_BIN, else /usr/lib/postgresql/*/bin, else `pg_config --bindir`, else PATH.
#
# If they are found, this changes nothing and needs no rights. Otherwise it installs the package `postgresql` of Debian
# or Ubuntu, as root or by sudo, without the cluster and the daemon that the package makes by default. It leaves no
# configuration behind. If it cannot install the package, it says what to install, and fails.
set -eu

# shellcheck source=scripts/lib/install.sh
. "$(dirname "$0")/lib/install.sh"

what='PostgreSQL server'
packages='Debian, Ubuntu: postgresql; Fedora: postgresql-server; Arch, Alpine: postgresql'
drop_in_dir=/etc/postgresql-common/createcluster.d
drop_in=$drop_in_dir/zz-podlock.conf

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

remove_drop_in() {
    as_root rm -f "$drop_in"
    as_root rmdir "$drop_in_dir" 2>/dev/null || true
}

if found; then
    exit 0
fi

must_be_able_to_install "$what" postgresql "$packages"
say "no $what found; installing the package postgresql by apt-get, as root, without a default cluster"

# Without this, the package makes a cluster and starts it on port 5432.
trap remove_drop_in EXIT
trap 'exit 1' HUP INT TERM
as_root mkdir -p "$drop_in_dir" || fail 'cannot become root; as root: apt-get install postgresql'
echo 'create_main_cluster = false' | as_root tee "$drop_in" >/dev/null

install_package postgresql "$packages"

found || fail 'the package postgresql is installed, but has no initdb and postgres in /usr/lib/postgresql/*/bin'
say 'PostgreSQL is installed'
