#!/bin/sh
# Finding: `claude -p --tools` takes names of tools that do not exist, says nothing and leaves them out. With one wrong
# name alone the agent has no tool at all; it still answers, and the exit code is 0.
# Who meets it: programs that pass on a list of tools which somebody wrote by hand ("bash" for "Bash").
# Versions: claude 2.1.332 (claude-agent-sdk 0.2.189).
# Steadyhand: it warns at the start of a tool name in an agent's settings that nobody knows:
# src/steadyhand/serve/config_warnings.py, tests/serve/test_config_warnings.py.
set -eu
. "$(dirname "$0")/setup.inc"
{
    install_claude
    for tools in "Bash,Read" "Bash,Raed" "bash"; do
        start_model '[{"text": "Yes."}]'
        status=0
        (
            cd "$run/work"
            exec timeout 120 env -i PATH=/usr/bin:/bin HOME="$run/home" ANTHROPIC_API_KEY=dummy \
                ANTHROPIC_BASE_URL="$url" CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 DISABLE_AUTOUPDATER=1 \
                "$claude" -p --model claude-sonnet-4-5 --output-format stream-json --verbose --tools "$tools" -- "Hello."
        ) </dev/null >"$run/out" 2>"$run/err" || status=$?
        end_model
        echo "--tools $tools"
        echo "  exit $status, $(wc -c <"$run/err" | tr -d ' ') bytes on stderr"
        python3 - "$run" <<'PY'
import json
import sys
from pathlib import Path

run = Path(sys.argv[1])
messages = [json.loads(line) for line in (run / "out").read_text().splitlines()]
first = next(each for each in messages if each["type"] == "system" and each["subtype"] == "init")
print(f"  tools: {sorted(first['tools'])}")
print(f"  result: {messages[-1]['subtype']}")
PY
    done
} >"$folder/seen"
compare <<'EXPECTED'
2.1.332 (Claude Code)
--tools Bash,Read
  exit 0, 0 bytes on stderr
  tools: ['Bash', 'Read']
  result: success
--tools Bash,Raed
  exit 0, 0 bytes on stderr
  tools: ['Bash']
  result: success
--tools bash
  exit 0, 0 bytes on stderr
  tools: []
  result: success
EXPECTED
