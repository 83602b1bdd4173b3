#!/bin/sh
# Prints the name of a PostgreSQL image that the Docker engine has: postgres:17 if it has it or can pull it, else a
# stand-in that this makes from Debian's packages, which takes a minute or two the first time and seconds after that.
set -eu

cd "$(dirname "$0")/.."

official=postgres:17

say() {
    printf 'postgres-image: %s\n' "$*" >&2
}

if docker image inspect "$official" >/dev/null 2>&1; then
    echo "$official"
    exit 0
fi
say "trying to pull $official"
if timeout 300 docker pull --quiet "$official" >/dev/null; then
    echo "$official"
    exit 0
fi

# Of a Debian, this one's release, whose packages are to be had if anything is; elsewhere a stable Debian.
suite=bookworm
if grep -qsx 'ID=debian' /etc/os-release; then
    suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
fi
# The tag changes with what the base is made of, that is, with this file.
tag=$suite-$(sha256sum scripts/postgres-image.sh | cut -c 1-12)
base=podlock-test-base:$tag
image=podlock-test-postgres:$tag

if docker image inspect "$base" >/dev/null 2>&1; then
    say "$official cannot be had; using the base $base that is there"
else
    say "$official cannot be had; making $base from the packages of Debian $suite"
    sh scripts/ensure-program.sh mmdebstrap mmdebstrap
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' HUP INT TERM
    # postgresql is the package of the server that the release has. No cluster is made on installation. iproute2 is for
    # looking at, and breaking, the network of a container.
    # shellcheck disable=SC2016 # mmdebstrap's shell expands $1, the new root directory
    mmdebstrap --quiet --variant=minbase --include=postgresql,iproute2 \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --essential-hook='mkdir -p "$1/etc/postgresql-common/createcluster.d"' \
        --essential-hook='echo "create_main_cluster = false" >"$1/etc/postgresql-common/createcluster.d/no.conf"' \
        --customize-hook='ln -s "$(cd "$1/usr/lib/postgresql" && echo */bin)" "$1/usr/lib/postgresql/bin"' \
        "$suite" "$work/base.tar" </dev/null >&2
    docker import "$work/base.tar" "$base" >/dev/null
fi

# Cheap once it has been made, and the entrypoint may have changed.
docker build --quiet --build-arg BASE_IMAGE="$base" -t "$image" compose/postgres >/dev/null
echo "$image"
