#!/bin/sh
# Finding: in the stream mode of `claude -p`, a second `initialize` request answers `success` and changes nothing. The
# system prompt of the first one stays, and no error says so.
# Who meets it: programs that keep a process ready and set the prompt when the work comes.
# Versions: claude 2.1.332 (claude-agent-sdk 0.2.189).
# Steadyhand: a process that was initialised serves only requests with the same system prompt:
# src/steadyhand/runner/claude/warm.py, tests/sandboxed/test_warm_slots.py.
set -eu
. "$(dirname "$0")/setup.inc"

request() { # request NUMBER PROMPT: a line that sets the system prompt
    printf '{"type": "control_request", "request_id": "%s", "request": {"subtype": "initialize", "systemPrompt": "%s"}}\n' \
        "$1" "$2"
}

{
    install_claude
    for prompts in "You are red." "You are red.|You are blue."; do
        start_model '[{"text": "Yes."}]'
        number=0
        : >"$run/in"
        rest="$prompts|"
        while [ -n "$rest" ]; do
            number=$((number + 1))
            request "$number" "${rest%%|*}" >>"$run/in"
            rest=${rest#*|}
        done
        echo '{"type": "user", "message": {"role": "user", "content": "Which colour?"}}' >>"$run/in"
        status=0
        (
            cd "$run/work"
            exec timeout 120 env -i PATH=/usr/bin:/bin HOME="$run/home" ANTHROPIC_API_KEY=dummy \
                ANTHROPIC_BASE_URL="$url" CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 DISABLE_AUTOUPDATER=1 \
                "$claude" -p --model claude-sonnet-4-5 --input-format stream-json --output-format stream-json --verbose
        ) <"$run/in" >"$run/out" 2>"$run/err" || status=$?
        end_model
        echo "Prompts in turn: $prompts"
        echo "  exit $status"
        python3 - "$run" <<'PY'
import json
import sys
from pathlib import Path

run = Path(sys.argv[1])
for line in (run / "out").read_text().splitlines():
    message = json.loads(line)
    if message["type"] == "control_response":
        response = message["response"]
        print(f"  initialize {response['request_id']}: {response['subtype']}")
asked = [json.loads(line)["body"] for line in (run / "requests.jsonl").read_text().splitlines()]
for color in ("red", "blue"):
    print(f"  the model reads 'You are {color}.': {any(f'You are {color}.' in json.dumps(each['system']) for each in asked)}")
PY
    done
} >"$folder/seen"
compare <<'EXPECTED'
2.1.332 (Claude Code)
Prompts in turn: You are red.
  exit 0
  initialize 1: success
  the model reads 'You are red.': True
  the model reads 'You are blue.': False
Prompts in turn: You are red.|You are blue.
  exit 0
  initialize 1: success
  initialize 2: success
  the model reads 'You are red.': True
  the model reads 'You are blue.': False
EXPECTED
