#!/usr/bin/env bash
# Try connections as a client would and print one line for each:
#   result|what was tried|what came back
# Arguments: database, user, then host and port of PostgreSQL, PgBouncer, Redis,
# InfluxDB and Grafana. Standard input: password of the user, password of Redis.
set -uo pipefail

database="$1" user="$2"
postgres=("$3" "$4") pgbouncer=("$5" "$6") redis=("$7" "$8") influxdb=("$9" "${10}") grafana=("${11}" "${12}")
IFS= read -r password
IFS= read -r redis_password

# Compare an answer with what it has to look like.
report() {
    local what="$1" expected="$2" answer="$3" result=failed
    answer="${answer//$'\r'/}"
    if grep --quiet --extended-regexp "$expected" <<<"$answer"; then
        result=ok
    fi
    answer="${answer##*: FATAL:  }"
    printf '%s|%s|%s\n' "$result" "$what" "$(tail -n 1 <<<"${answer//|/ }" | cut -c 1-160)"
}

login() {
    PGPASSWORD="$3" PGCONNECT_TIMEOUT=5 psql --no-psqlrc --no-password --tuples-only --no-align \
        --host="$1" --port="$2" --username="$user" --dbname="$database" \
        --command="SELECT current_user || ' in ' || current_database()" 2>&1
}

# Send bytes, print the lines that come back within five seconds.
talk() {
    local host="$1" port="$2" request="$3" lines="$4"
    exec 3<>"/dev/tcp/$host/$port" || return
    printf '%s' "$request" >&3
    timeout 5 head -n "$lines" <&3
    exec 3>&-
} 2>&1

# A password holds no space or quote, so Redis' inline form takes it as it is.
ping_request=$'PING\r\n'
auth_request="AUTH $redis_password"$'\r\n'

report "PostgreSQL: $user logs in" "^$user in $database\$" "$(login "${postgres[@]}" "$password")"
report 'PostgreSQL: a wrong password is refused' 'password authentication failed' "$(login "${postgres[@]}" "not-$password")"
report "PgBouncer: $user logs in" "^$user in $database\$" "$(login "${pgbouncer[@]}" "$password")"
report 'PgBouncer: a wrong password is refused' 'authentication failed' "$(login "${pgbouncer[@]}" "not-$password")"
report 'Redis: PING with the password' '^\+PONG' "$(talk "${redis[@]}" "$auth_request$ping_request" 2)"
report 'Redis: PING without it is refused' '^-NOAUTH' "$(talk "${redis[@]}" "$ping_request" 1)"
report 'InfluxDB: /health' '^HTTP/1\.[01] 200 ' "$(talk "${influxdb[@]}" $'GET /health HTTP/1.0\r\nHost: influxdb\r\n\r\n' 1)"
report 'Grafana: /api/health' '^HTTP/1\.[01] 200 ' "$(talk "${grafana[@]}" $'GET /api/health HTTP/1.0\r\nHost: grafana\r\n\r\n' 1)"
