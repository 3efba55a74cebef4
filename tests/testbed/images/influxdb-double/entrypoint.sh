#!/bin/bash
# Drop root for the server, as the official image does; other commands run as
# they are. First setup from DOCKER_INFLUXDB_INIT_* happens in the server.
set -euo pipefail

if [ "${1:0:1}" = - ]; then
    set -- influxd "$@"
fi

if [ "$1" = influxd ] && [ "$(id -u)" = 0 ]; then
    chmod 700 /var/lib/influxdb2 || true
    chmod 775 /etc/influxdb2 || true
    find /var/lib/influxdb2 /etc/influxdb2 ! -user influxdb -exec chown influxdb '{}' +
    exec setpriv --reuid=influxdb --regid=influxdb --init-groups "$@"
fi

exec "$@"
