#!/bin/sh
# `ensure-daemon.sh PROGRAM PACKAGE` makes sure that PROGRAM is in PATH or /usr/sbin. The package of such a program
# starts a service of the same name, but tests start their own: pgbouncer before the database, nginx before the pods,
# and PostgreSQL under patroni, with etcd.
#
# If the program is found, this changes nothing and needs no rights. Otherwise it installs PACKAGE of Debian or Ubuntu,
# as root or by sudo, and keeps its service from running, now and after a reboot. A service that runs already goes on.
# If this cannot install the package, it says what to install, and fails.
set -eu

# shellcheck source=scripts/lib/install.sh
. "$(dirname "$0")/lib/install.sh"

program=$1
package=$2
packages="Debian, Ubuntu: $package"
policy=/usr/sbin/policy-rc.d

found() {
    command -v "$program" >/dev/null 2>&1 || [ -x "/usr/sbin/$program" ]
}

running() {
    grep -lsx "$program" /proc/[0-9]*/comm >/dev/null
}

remove_policy() {
    as_root rm -f "$policy"
}

if found; then
    exit 0
fi

must_be_able_to_install "$program" "$package" "$packages"
say "no $program found; installing the package $package by apt-get, as root, without starting its service"

ran_before=no
if running; then
    ran_before=yes
fi

# Debian runs this file before a package starts a service. If there is one, as in container images, it stays as it is.
# Ours refuses only this service. So it does no harm, even if this script is killed before it removes the file.
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

install_package "$package" "$packages"

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
