#!/bin/sh
# Finding: with `claude --json-schema` a run without the object is a success. If the model answers in prose, the CLI
# asks once more for the call of its tool; if that answer is prose too, the run ends with exit code 0,
# `subtype: success` and `is_error: false`. Only the absence of `structured_output` tells it.
# Who meets it: programs that trust the exit code or `is_error`, and take `result` for the JSON.
# Versions: claude 2.1.332 (claude-agent-sdk 0.2.189).
# Steadyhand: such a job fails with the outcome `invalid_output`: src/steadyhand/outcome.py,
# tests/blackbox/test_real_cli.py.
set -eu
. "$(dirname "$0")/setup.inc"
{
    install_claude
    schema='{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
    for replies in \
        '[{"tool": "StructuredOutput", "input": {"city": "Oslo"}}]' \
        '[{"text": "It is Oslo."}, {"tool": "StructuredOutput", "input": {"city": "Oslo"}}]' \
        '[{"text": "It is Oslo."}, {"text": "It is Oslo, as I said."}, {"text": "Oslo."}]'; do
        ask_claude "$replies" --json-schema "$schema" "Which city?"
        echo "The model answers $replies"
        echo "  exit $status, $calls calls of the model"
        result subtype is_error structured_output result
    done
} >"$folder/seen"
compare <<'EXPECTED'
2.1.332 (Claude Code)
The model answers [{"tool": "StructuredOutput", "input": {"city": "Oslo"}}]
  exit 0, 1 calls of the model
  subtype: "success"
  is_error: false
  structured_output: {"city": "Oslo"}
  result: "{\"city\":\"Oslo\"}"
The model answers [{"text": "It is Oslo."}, {"tool": "StructuredOutput", "input": {"city": "Oslo"}}]
  exit 0, 2 calls of the model
  subtype: "success"
  is_error: false
  structured_output: {"city": "Oslo"}
  result: "{\"city\":\"Oslo\"}"
The model answers [{"text": "It is Oslo."}, {"text": "It is Oslo, as I said."}, {"text": "Oslo."}]
  exit 0, 2 calls of the model
  subtype: "success"
  is_error: false
  structured_output: -
  result: "It is Oslo, as I said."
EXPECTED
