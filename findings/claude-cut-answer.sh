#!/bin/sh
# Finding: if the model reaches its limit of output tokens, `claude -p` asks it to continue by itself, and `result` is
# only the last part of the answer. The first part is in the stream of messages alone, and `stop_reason` is that of the
# last part.
# Who meets it: programs that read long answers from `--output-format json`.
# Versions: claude 2.1.332 (claude-agent-sdk 0.2.189).
# Steadyhand: it puts the parts of an answer together from the messages: src/steadyhand/runner/claude/messages.py,
# tests/blackbox/test_cut_answers.py.
set -eu
. "$(dirname "$0")/setup.inc"
{
    install_claude
    for replies in \
        '[{"text": "Chapter one. Chapter two."}]' \
        '[{"text": "Chapter one. ", "stop": "max_tokens"}, {"text": "Chapter two."}]'; do
        ask_claude "$replies" "Tell me a story."
        echo "The model answers $replies"
        echo "  exit $status, $calls calls of the model"
        result subtype is_error num_turns stop_reason result
    done
} >"$folder/seen"
compare <<'EXPECTED'
2.1.332 (Claude Code)
The model answers [{"text": "Chapter one. Chapter two."}]
  exit 0, 1 calls of the model
  subtype: "success"
  is_error: false
  num_turns: 1
  stop_reason: "end_turn"
  result: "Chapter one. Chapter two."
The model answers [{"text": "Chapter one. ", "stop": "max_tokens"}, {"text": "Chapter two."}]
  exit 0, 2 calls of the model
  subtype: "success"
  is_error: false
  num_turns: 2
  stop_reason: "end_turn"
  result: "Chapter two."
EXPECTED
