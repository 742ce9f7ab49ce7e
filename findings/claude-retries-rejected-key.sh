#!/bin/sh
# Finding: a key that the model's service rejects (401) does not end `claude -p`. It sends the same request with the same
# key eleven times, over about three minutes, and then ends with exit code 1; `--output-format json` tells nothing before.
# So does a token of `ANTHROPIC_AUTH_TOKEN`. One of `CLAUDE_CODE_OAUTH_TOKEN` is tried twice, and with the header
# `x-should-retry: false` a key is tried once. The script takes four minutes.
# Who meets it: programs that run it headless, once a key has been revoked or was never right: each run hangs for minutes.
# Versions: claude 2.1.332 (claude-agent-sdk 0.2.189).
# Steadyhand: the gateway answers the CLI with 403, which ends the run at once, and the job waits for a new credential:
# src/steadyhand/gateway/model/rejected_credentials.py, tests/sandboxed/test_rejected_credential.py.
set -eu
. "$(dirname "$0")/setup.inc"

try_credential() { # try_credential VARIABLE=VALUE HEADERS: one run whose every request is refused
    start_model '[{"status": 401, "type": "authentication_error", "text": "invalid x-api-key", "headers": '"$2"'}]'
    status=0
    began=$(date +%s)
    (
        cd "$run/work"
        exec timeout 600 env -i PATH=/usr/bin:/bin HOME="$run/home" "$1" ANTHROPIC_BASE_URL="$url" \
            CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 DISABLE_AUTOUPDATER=1 \
            "$claude" -p --model claude-sonnet-4-5 --output-format json "Hello."
    ) </dev/null >"$run/out" 2>"$run/err" || status=$?
    seconds=$(($(date +%s) - began))
    end_model
    length=short
    [ "$seconds" -lt 120 ] || length="more than two minutes"
    echo "${1%%=*}, $2"
    echo "  exit $status, $(wc -l <"$run/requests.jsonl" | tr -d ' ') calls of the model, $length"
    echo "  $(wc -c <"$run/err" | tr -d ' ') bytes on stderr"
    result is_error api_error_status
}

{
    install_claude
    try_credential ANTHROPIC_API_KEY=dummy '{}'
    try_credential ANTHROPIC_API_KEY=dummy '{"x-should-retry": "false"}'
    try_credential CLAUDE_CODE_OAUTH_TOKEN=sk-ant-oat01-dummy '{}'
} >"$folder/seen"
compare <<'EXPECTED'
2.1.332 (Claude Code)
ANTHROPIC_API_KEY, {}
  exit 1, 11 calls of the model, more than two minutes
  0 bytes on stderr
  is_error: true
  api_error_status: 401
ANTHROPIC_API_KEY, {"x-should-retry": "false"}
  exit 1, 1 calls of the model, short
  0 bytes on stderr
  is_error: true
  api_error_status: 401
CLAUDE_CODE_OAUTH_TOKEN, {}
  exit 1, 2 calls of the model, short
  0 bytes on stderr
  is_error: true
  api_error_status: 401
EXPECTED
