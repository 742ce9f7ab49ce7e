#!/bin/sh
# Finding: `claude -p` takes a prompt whose first word is the name of a command of its own for that command, also one
# that has no headless form. The rest of the text is lost, the model is not asked, and the run is a success with exit
# code 0. The names include everyday words (/status, /memory, /clear). A name that it does not know (/health) is text.
# Who meets it: programs that pass on prompts of others, such as messages of a chat or titles of issues.
# Versions: claude 2.1.332 (claude-agent-sdk 0.2.189).
# Steadyhand: such a prompt is text, and a run that never asked the model has the outcome `not_asked`:
# src/steadyhand/runner/claude/slash_commands.py, tests/runner/claude/test_slash_commands.py,
# tests/blackbox/test_real_cli.py.
set -eu
. "$(dirname "$0")/setup.inc"
{
    install_claude
    for prompt in \
        "/health page is down" \
        "/status page is down" \
        "/memory leaks in the parser" \
        "/clear the table of old rows"; do
        ask_claude '[{"text": "I will look at it."}]' "$prompt"
        echo "$prompt"
        echo "  exit $status, $calls calls of the model"
        result subtype is_error num_turns result
    done
} >"$folder/seen"
compare <<'EXPECTED'
2.1.332 (Claude Code)
/health page is down
  exit 0, 1 calls of the model
  subtype: "success"
  is_error: false
  num_turns: 1
  result: "I will look at it."
/status page is down
  exit 0, 0 calls of the model
  subtype: "success"
  is_error: false
  num_turns: 0
  result: "/status isn't available in this environment."
/memory leaks in the parser
  exit 0, 0 calls of the model
  subtype: "success"
  is_error: false
  num_turns: 0
  result: "/memory isn't available in this environment."
/clear the table of old rows
  exit 0, 0 calls of the model
  subtype: "success"
  is_error: false
  num_turns: 0
  result: ""
EXPECTED
