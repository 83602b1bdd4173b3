#!/bin/sh
# Makes the cluster on the first start, then becomes the server. POSTGRES_PASSWORD, POSTGRES_USER, POSTGRES_DB and
# PGDATA mean what they mean to the official image.
set -eu

if [ "$(id -u)" -eq 0 ]; then
    mkdir -p "$PGDATA" /var/run/postgresql
    chown postgres:postgres "$PGDATA" /var/run/postgresql
    chmod 700 "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --init-groups -- /bin/sh "$0" "$@"
fi

if ! [ -s "$PGDATA/PG_VERSION" ]; then
    if [ -z "${POSTGRES_PASSWORD:-}" ]; then
        echo 'entrypoint: POSTGRES_PASSWORD is not set; without it no client could come in over the network' >&2
        exit 1
    fi
    user=${POSTGRES_USER:-postgres}
    database=${POSTGRES_DB:-$user}
    password_file=$(mktemp)
    trap 'rm -f "$password_file"' EXIT
    printf '%s\n' "$POSTGRES_PASSWORD" >"$password_file"
    initdb --username="$user" --pwfile="$password_file" --auth-local=trust --auth-host=scram-sha-256
    rm -f "$password_file"
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
    if [ "$database" != postgres ]; then
        # Not on the network yet, so that nobody finds the server without its database.
        pg_ctl --pgdata="$PGDATA" --options="-c listen_addresses=''" --wait start
        createdb --username="$user" --maintenance-db=postgres -- "$database"
        pg_ctl --pgdata="$PGDATA" --mode=fast --wait stop
    fi
fi

unset POSTGRES_PASSWORD
exec "$@"
