#!/bin/sh
# Runs tests/compose on a project of containers of its own, and removes that project whatever happens.
#
# POSTGRES_IMAGE and PODLOCK_IMAGE, if they are set, are used as they are; otherwise the images are pulled or made here.
# Nothing that bears another project's name is touched. The images of PostgreSQL stay, as a cache.
set -eu

cd "$(dirname "$0")/.."

: "${CARGO:=cargo}"
COMPOSE=$(sh scripts/compose-command.sh)
COMPOSE_PROJECT_NAME=podlock-test-$(date +%s)-$$
COMPOSE_FILE=$PWD/compose/compose.yaml
# Nobody needs to know it, and nothing may have it built in.
POSTGRES_PASSWORD=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
# A pod may bury once it has been up for a lease: a short one shortens the test.
PODLOCK_LEASE=3s
# The chunks of the demo's runs would leave no room for anything else in the last lines of a log.
PODLOCK_LOG=info,podlock::demo=warn
export COMPOSE COMPOSE_PROJECT_NAME COMPOSE_FILE POSTGRES_PASSWORD PODLOCK_LEASE PODLOCK_LOG

made=
outcome=1
# shellcheck disable=SC2317 # called by the trap
clean_up() {
    if [ -n "${POSTGRES_IMAGE:-}" ] && [ -n "${PODLOCK_IMAGE:-}" ]; then
        if [ "$outcome" -ne 0 ]; then
            echo 'compose-test: failed; the last lines of each container:' >&2
            $COMPOSE ps -a >&2 || true
            $COMPOSE logs --no-color --tail=60 >&2 || true
        fi
        $COMPOSE down --volumes --remove-orphans --timeout 5 >/dev/null 2>&1 ||
            echo "compose-test: $COMPOSE_PROJECT_NAME is not all removed, see docker ps -a and docker volume ls" >&2
    fi
    if [ -n "$made" ]; then
        docker image rm "$made" >/dev/null 2>&1 || true
    fi
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

if [ -z "${POSTGRES_IMAGE:-}" ]; then
    POSTGRES_IMAGE=$(sh scripts/postgres-image.sh)
fi
if [ -z "${PODLOCK_IMAGE:-}" ]; then
    # A name of its own, for two of these may run on one engine.
    made=podlock-test:${COMPOSE_PROJECT_NAME#podlock-test-}
    PODLOCK_IMAGE=$made
    sh scripts/podlock-image.sh "$made"
fi
export POSTGRES_IMAGE PODLOCK_IMAGE

outcome=0
"$CARGO" test --all-features --test compose -- --ignored --nocapture || outcome=$?
exit "$outcome"
