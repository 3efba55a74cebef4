#!/bin/sh
# Spoils Momentum's SQLite file, or mends it. The original waits beside it,
# under the name .whole; a flag says whether the bot ran before.
set -eu

action=$1
bot=momentum_trading
folder=$(docker inspect --format \
  '{{range .Mounts}}{{if eq .Destination "/app/data"}}{{.Source}}{{end}}{{end}}' "$bot")
database=$folder/trading.db
whole=$folder/.whole
was_running=$folder/.bot_was_running
unit=sabotage-sqlite-lock

stop_bot() {
  if [ "$(docker inspect --format '{{.State.Running}}' "$bot")" = true ]; then
    touch "$was_running"
    docker stop "$bot" >/dev/null
  fi
}

start_bot() {
  if [ -e "$was_running" ]; then
    docker start "$bot" >/dev/null
    rm "$was_running"
  fi
}

unchanged() {
  echo unchanged
  exit 0
}

case $action in
  corrupt | remove)
    [ ! -e "$whole" ] || unchanged
    stop_bot
    # All that the file consists of, in one step.
    mkdir "$whole.new"
    mv "$database"* "$whole.new/"
    mv "$whole.new" "$whole"
    if [ "$action" = corrupt ]; then
      cp --preserve=all "$whole/trading.db"* "$folder/"
      # Pages in the middle: the header stays, so that the file still opens.
      pages=$(($(stat --format=%s "$database") / 4096))
      dd if=/dev/urandom of="$database" bs=4096 seek=$((pages / 3)) count=$((pages / 3)) conv=notrunc status=none
    fi
    ;;
  restore)
    [ -e "$whole" ] || unchanged
    rm -f "$database"*
    mv "$whole"/* "$folder/"
    rmdir "$whole"
    start_bot
    ;;
  lock)
    ! systemctl --quiet is-active "$unit" || unchanged
    stop_bot
    # In WAL mode an exclusive transaction alone would let readers in.
    systemd-run --quiet --collect --unit="$unit" --service-type=notify --property=NotifyAccess=all \
      python3 -c '
import sqlite3, subprocess, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA locking_mode = EXCLUSIVE")
connection.execute("BEGIN EXCLUSIVE")
connection.execute("PRAGMA user_version = 1")
subprocess.run(["systemd-notify", "--ready"], check=True)
while True:
    time.sleep(3600)
' "$database"
    ;;
  free)
    systemctl --quiet is-active "$unit" || unchanged
    systemctl stop "$unit"
    start_bot
    ;;
esac
echo "$action done"
