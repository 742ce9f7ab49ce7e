#!/bin/sh
# Makes the virtual environment at $1 and installs the project into it, on a machine that may be new; with the word
# `tests` after it, only what tests need beside it; with `bench`, the library for plots as well; with `queue-engines`,
# the other engine of the trial. Debian's own packages are installed when root; otherwise the missing ones are named.
set -eu
venv=$1
for_tests=${2:-}
extras=dev,docs,notify,objects,postgres
[ "$for_tests" != bench ] || extras=dev,docs,notify,objects,postgres,bench
[ "$for_tests" != queue-engines ] || extras=dev,postgres,queue-engines

need() { # need COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

no_main_cluster() { # Debian's package would make and start a server for the whole machine
    [ ! -e /etc/postgresql-common ] || return 0
    apt-get update -qq >/dev/null 2>&1 || return 0
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql-common >/dev/null 2>&1 \
        || return 0
    sed -i 's/^#*create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
}

missing=""
need git git
need bwrap bubblewrap
command -v mkfs.ext4 >/dev/null 2>&1 || [ -x /sbin/mkfs.ext4 ] || missing="$missing e2fsprogs"
python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || missing="$missing python3-venv"
# The gateway's tests make a certificate. The how-tos call the service by curl.
[ "$for_tests" != tests ] || { need openssl openssl; need curl curl; }
# The operations page is looked at in a real browser.
[ "$for_tests" != tests ] || need chromium chromium
# The store is tested on both of its databases. Tests start a server of their own.
if [ "$for_tests" = tests ] || [ "$for_tests" = bench ] || [ "$for_tests" = queue-engines ]; then
    [ -n "$(find /usr/lib/postgresql -path '*/bin/initdb' 2>/dev/null)" ] || missing="$missing postgresql"
    [ -x /usr/sbin/pgbouncer ] || missing="$missing pgbouncer"
fi
# The Dockerfile's steps are run in a root made from Debian's packages, which only root can do.
if [ "$for_tests" = tests ] && [ "$(id -u)" = 0 ]; then need mmdebstrap mmdebstrap; fi
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "Installing Debian packages:$missing"
        said=$(mktemp)
        case $missing in *postgresql*) no_main_cluster ;; esac
        # shellcheck disable=SC2086  # one word a package
        if ! { apt-get update -qq \
            && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } >"$said" 2>&1
        then
            cat "$said" >&2
            rm -f "$said"
            echo "Debian's packages could not be installed:$missing" >&2
            exit 1
        fi
        rm -f "$said"
    else
        echo "Steadyhand needs these Debian packages first:$missing" >&2
        echo "  sudo apt-get update && sudo apt-get install$missing" >&2
        exit 1
    fi
fi
[ "$for_tests" != tests ] || exit 0
python3 - <<'PY' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"Steadyhand needs Python 3.11 or newer; python3 here is {sys.version.split()[0]}")
PY

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
python=$venv/bin/python
pip() { "$python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "$@"; }
echo "Installing Python packages into $venv (about half a minute the first time)"
# uv takes a fourth of pip's time; where it cannot have the packages, for a login that only pip knows, pip can.
pip uv
. tools/uv.sh
"$venv/bin/uv" pip install --quiet --python "$python" --compile-bytecode -c constraints.txt -e ".[$extras]" \
    || pip -e ".[$extras]"
