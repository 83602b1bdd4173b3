#!/bin/sh
# Prints how Compose is called here, `docker compose` or `docker-compose`, once a Docker engine answers.
#
# Where there is an engine and no Compose, it installs Debian's or Ubuntu's package docker-compose, as root or by sudo.
set -eu

here=$(dirname "$0")

fail() {
    printf 'compose-command: %s\n' "$*" >&2
    exit 1
}

command -v docker >/dev/null 2>&1 || fail 'no docker found; install Docker (Debian, Ubuntu: docker.io) and try again'
timeout 10 docker info >/dev/null 2>&1 ||
    fail 'no Docker engine answers docker info within 10 s; start one, or see whether you may use it'

if docker compose version >/dev/null 2>&1; then
    echo 'docker compose'
else
    sh "$here/ensure-program.sh" docker-compose docker-compose
    echo docker-compose
fi
