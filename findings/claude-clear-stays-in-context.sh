#!/bin/sh
# Finding: in the stream mode of `claude -p`, the model is told of `/clear`. The request after it has no earlier turn, but
# its first message begins with more blocks of text than in a new process: they name the command and its output.
# Who meets it: programs that use one process for many conversations and expect each to begin as new.
# Versions: claude 2.1.332 (claude-agent-sdk 0.2.189).
# Steadyhand: it takes a turn out of a waiting process with the request `rewind_conversation`, which leaves nothing:
# src/steadyhand/runner/claude/warm.py, tests/sandboxed/test_warm_slots.py.
set -eu
. "$(dirname "$0")/setup.inc"
{
    install_claude
    for prompts in "Which colour?" "Hello.|/clear|Which colour?"; do
        start_model '[{"text": "Yes."}]'
        status=0
        (
            cd "$run/work"
            exec timeout 120 env -i PATH=/usr/bin:/bin HOME="$run/home" ANTHROPIC_API_KEY=dummy \
                ANTHROPIC_BASE_URL="$url" CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 DISABLE_AUTOUPDATER=1 \
                python3 "$here/turns.py" "$prompts" \
                "$claude" -p --model claude-sonnet-4-5 --input-format stream-json --output-format stream-json --verbose
        ) </dev/null >"$run/out" 2>"$run/err" || status=$?
        end_model
        echo "Prompts in turn: $prompts"
        echo "  exit $status"
        python3 - "$run" <<'PY'
import json
import re
import sys
from pathlib import Path

asked = [json.loads(line)["body"] for line in (Path(sys.argv[1]) / "requests.jsonl").read_text().splitlines()]
texts = [block["text"] for message in asked[-1]["messages"] for block in message["content"] if block["type"] == "text"]
print(f"  last request: {len(asked[-1]['messages'])} messages, {len(texts)} blocks of text")
print(f"  it holds the earlier turn: {any('Hello.' in text for text in texts)}")
print(f"  it names the command: {any('/clear' in text for text in texts)}")
PY
    done
} >"$folder/seen"
compare <<'EXPECTED'
2.1.332 (Claude Code)
Prompts in turn: Which colour?
  exit 0
  last request: 1 messages, 9 blocks of text
  it holds the earlier turn: False
  it names the command: False
Prompts in turn: Hello.|/clear|Which colour?
  exit 0
  last request: 1 messages, 12 blocks of text
  it holds the earlier turn: False
  it names the command: True
EXPECTED
