#!/bin/bash
# Start PostgreSQL as the official image documents it: an empty PGDATA is
# initialised from the environment, then the server runs as uid 999.
set -euo pipefail
shopt -s nullglob

fail() {
    echo "Error: $*" >&2
    exit 1
}

# A secret comes from VAR or from the file named by VAR_FILE, never from both.
from_env_or_file() {
    local name="$1" default="${2:-}" file_name="${1}_FILE"
    if [ -n "${!name:-}" ] && [ -n "${!file_name:-}" ]; then
        fail "both $name and $file_name are set (but are exclusive)"
    fi
    if [ -n "${!file_name:-}" ]; then
        # Assigned first: a file that cannot be read has to stop the start.
        local value
        value="$(cat "${!file_name}")"
        export "$name=$value"
    else
        export "$name=${!name:-$default}"
    fi
    unset "$file_name"
}

# Information requests of the server need no database.
wants_information() {
    local arg
    for arg in "$@"; do
        case "$arg" in
            -'?' | --help | --describe-config | -V | --version) return 0 ;;
        esac
    done
    return 1
}

prepare_directories() {
    mkdir -p "$PGDATA" /var/run/postgresql
    chmod 00700 "$PGDATA" || true
    chmod 03775 /var/run/postgresql || true
    if [ -n "${POSTGRES_INITDB_WALDIR:-}" ]; then
        mkdir -p "$POSTGRES_INITDB_WALDIR"
        chmod 700 "$POSTGRES_INITDB_WALDIR"
    fi
    if [ "$(id -u)" = 0 ]; then
        find "$PGDATA" ! -user postgres -exec chown postgres '{}' +
        find /var/run/postgresql ! -user postgres -exec chown postgres '{}' +
        if [ -n "${POSTGRES_INITDB_WALDIR:-}" ]; then
            find "$POSTGRES_INITDB_WALDIR" ! -user postgres -exec chown postgres '{}' +
        fi
    fi
}

check_environment() {
    if [ "${#POSTGRES_PASSWORD}" = 0 ] && [ "$POSTGRES_HOST_AUTH_METHOD" != trust ]; then
        fail "Database is uninitialized and superuser password is not specified.
       You must specify POSTGRES_PASSWORD to a non-empty value for the
       superuser. For example, \"-e POSTGRES_PASSWORD=password\" on \"docker run\".

       You may also use \"POSTGRES_HOST_AUTH_METHOD=trust\" to allow all
       connections without a password. This is *not* recommended."
    fi
    if [ "$POSTGRES_HOST_AUTH_METHOD" = trust ]; then
        echo "WARNING: POSTGRES_HOST_AUTH_METHOD has been set to \"trust\". Anyone who reaches the port may read and write everything." >&2
    fi
}

initialise() {
    local waldir=''
    if [ -n "${POSTGRES_INITDB_WALDIR:-}" ]; then
        waldir="--waldir=$(printf '%q' "$POSTGRES_INITDB_WALDIR")"
    fi
    # POSTGRES_INITDB_ARGS is a shell-quoted string of arguments by contract.
    eval 'initdb --username="$POSTGRES_USER" --pwfile=<(printf "%s\n" "$POSTGRES_PASSWORD")' \
        "$waldir" "$POSTGRES_INITDB_ARGS"
}

allow_network_logins() {
    local method="$POSTGRES_HOST_AUTH_METHOD"
    if [ -z "$method" ]; then
        method="$(postgres -C password_encryption "${@:2}")"
    fi
    printf '\nhost all all all %s\n' "$method" >> "$PGDATA/pg_hba.conf"
}

run_sql() {
    local database="$1"
    shift
    PGHOST='' PGHOSTADDR='' psql --set ON_ERROR_STOP=1 --no-password --no-psqlrc \
        --username "$POSTGRES_USER" --dbname "$database" "$@"
}

create_database() {
    local found
    found="$(run_sql postgres --set db="$POSTGRES_DB" --tuples-only <<< "SELECT 1 FROM pg_database WHERE datname = :'db'")"
    if [ -z "$found" ]; then
        run_sql postgres --set db="$POSTGRES_DB" <<< 'CREATE DATABASE :"db"'
    fi
}

run_init_files() {
    local file
    for file in /docker-entrypoint-initdb.d/*; do
        case "$file" in
            *.sh)
                if [ -x "$file" ]; then
                    echo "$0: running $file"
                    "$file"
                else
                    echo "$0: sourcing $file"
                    # shellcheck source=/dev/null
                    . "$file"
                fi
                ;;
            *.sql)
                echo "$0: running $file"
                run_sql "$POSTGRES_DB" --file "$file"
                ;;
            *.sql.gz)
                echo "$0: running $file"
                gunzip --stdout "$file" | run_sql "$POSTGRES_DB"
                ;;
            *) echo "$0: ignoring $file" ;;
        esac
    done
}

main() {
    if [ "${1:0:1}" = - ]; then
        set -- postgres "$@"
    fi
    if [ "${1:-}" = postgres ] && ! wants_information "$@"; then
        prepare_directories
        if [ "$(id -u)" = 0 ]; then
            exec setpriv --reuid=postgres --regid=postgres --init-groups "${BASH_SOURCE[0]}" "$@"
        fi
        from_env_or_file POSTGRES_PASSWORD
        from_env_or_file POSTGRES_USER postgres
        from_env_or_file POSTGRES_DB "$POSTGRES_USER"
        from_env_or_file POSTGRES_INITDB_ARGS
        : "${POSTGRES_HOST_AUTH_METHOD:=}"
        if [ -s "$PGDATA/PG_VERSION" ]; then
            echo 'PostgreSQL Database directory appears to contain a database; Skipping initialization'
        else
            check_environment
            # An unreadable folder has to be noticed before anything is created.
            ls /docker-entrypoint-initdb.d/ > /dev/null
            initialise
            allow_network_logins "$@"
            export PGPASSWORD="${PGPASSWORD:-$POSTGRES_PASSWORD}"
            # Only the socket answers until the set-up is complete.
            NOTIFY_SOCKET='' PGUSER="$POSTGRES_USER" pg_ctl --pgdata="$PGDATA" --wait \
                --options="$(printf '%q ' "${@:2}" -c listen_addresses= -p "${PGPORT:-5432}")" start
            create_database
            run_init_files
            PGUSER="$POSTGRES_USER" pg_ctl --pgdata="$PGDATA" --mode=fast --wait stop
            unset PGPASSWORD
            echo 'PostgreSQL init process complete; ready for start up.'
        fi
    fi
    exec "$@"
}

main "$@"
