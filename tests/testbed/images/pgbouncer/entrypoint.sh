#!/bin/sh
# A mounted configuration is used as it is. The original can also write one
# from DB_* variables; nothing here relies on that, so it is refused.
set -eu

config=/etc/pgbouncer/pgbouncer.ini
if [ ! -f "$config" ]; then
    echo "$config does not exist: mount the configuration (this image does not generate one from DB_HOST)." >&2
    exit 1
fi

exec "$@"
