#!/bin/sh
# Finding: if the agent leaves a command of its Bash tool in the background and answers, `claude -p` waits for the
# command, tells the model of its end, and gets a remark about that. With `--output-format json` the remark alone is the
# `result`: the answer is lost, and `num_turns` counts the last turn alone. `text` prints both, `stream-json` has two
# results.
# Who meets it: programs that read one answer from `claude -p` and allow the Bash tool: the model decides whether a
# command runs in the background.
# Versions: claude 2.1.332 (claude-agent-sdk 0.2.189).
# Steadyhand: a run goes on with the turn that the background wakes, and a stream has the text of each turn:
# src/steadyhand/runner/claude/messages.py, tests/runner/claude/test_background.py. The whole answer is the last one.
set -eu
. "$(dirname "$0")/setup.inc"

answer_and_remark='{"text": "Line 7 has a wrong path."}, {"text": "The build has ended."}'
ask_with_build() { # ask_with_build IN_BACKGROUND ARGUMENT..
    build='{"command": "sleep 1; sleep 1; echo built", "description": "Build", "run_in_background": '"$1"'}'
    shift
    ask_claude '[{"tool": "Bash", "input": '"$build"'}, '"$answer_and_remark"']' --allowedTools=Bash "$@" \
        "Why does the build fail?"
    echo "  exit $status, $calls calls of the model"
}

{
    install_claude
    echo "The command runs in the foreground, json"
    ask_with_build false
    result subtype num_turns result
    echo "The command runs in the background, json"
    ask_with_build true
    result subtype num_turns result
    echo "The command runs in the background, text"
    ask_with_build true --output-format text
    sed -n "s/^./  &/p" "$run/out"
    echo "The command runs in the background, stream-json"
    ask_with_build true --output-format stream-json --verbose
    python3 -c 'import json, sys
for line in open(sys.argv[1]):
    message = json.loads(line)
    if message["type"] == "result":
        print("  num_turns:", message["num_turns"], "result:", message["result"])' "$run/out"
} >"$folder/seen"
compare <<'EXPECTED'
2.1.332 (Claude Code)
The command runs in the foreground, json
  exit 0, 2 calls of the model
  subtype: "success"
  num_turns: 2
  result: "Line 7 has a wrong path."
The command runs in the background, json
  exit 0, 3 calls of the model
  subtype: "success"
  num_turns: 1
  result: "The build has ended."
The command runs in the background, text
  exit 0, 3 calls of the model
  Line 7 has a wrong path.
  The build has ended.
The command runs in the background, stream-json
  exit 0, 3 calls of the model
  num_turns: 2 result: Line 7 has a wrong path.
  num_turns: 1 result: The build has ended.
EXPECTED
