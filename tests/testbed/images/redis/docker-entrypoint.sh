#!/bin/sh
# Start Redis as the official image documents it: options or a *.conf file may
# stand alone, data in the working directory, never as root.
set -eu

case "${1:-}" in
    -* | *.conf) set -- redis-server "$@" ;;
esac

if [ "${1:-}" = redis-server ] && [ "$(id -u)" = 0 ]; then
    find . ! -user redis -exec chown redis '{}' +
    exec setpriv --reuid=redis --regid=redis --clear-groups "$0" "$@"
fi

# Files with data are nobody else's business, unless somebody chose otherwise.
if [ "$(umask)" = 0022 ]; then
    umask 0077
fi

exec "$@"
