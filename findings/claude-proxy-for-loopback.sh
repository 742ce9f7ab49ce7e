#!/bin/sh
# Finding: with HTTP_PROXY, `claude -p` sends the calls of a model on 127.0.0.1 to the proxy, but its telemetry to the same
# address goes there directly. A proxy on another machine reaches nobody, or somebody else, by that address. With
# NO_PROXY=127.0.0.1 both go directly.
# Who meets it: users behind a proxy with a gateway for models on their own machine (ANTHROPIC_BASE_URL).
# Versions: claude 2.1.332 (claude-agent-sdk 0.2.189).
# Steadyhand: an agent with a proxy in its environment has 127.0.0.1 in NO_PROXY, too, if the gateway listens there:
# src/steadyhand/runner/claude/environment.py, tests/blackbox/test_real_cli.py.
set -eu
. "$(dirname "$0")/setup.inc"

{
    install_claude
    for exceptions in "" "127.0.0.1"; do
        # One server is the model, the receiver of the telemetry and the proxy: a proxy is asked for a whole URL.
        start_model '[{"text": "Yes."}]'
        status=0
        (
            cd "$run/work"
            exec timeout 120 env -i PATH=/usr/bin:/bin HOME="$run/home" ANTHROPIC_API_KEY=dummy \
                ANTHROPIC_BASE_URL="$url" HTTP_PROXY="$url" NO_PROXY="$exceptions" \
                CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 DISABLE_AUTOUPDATER=1 CLAUDE_CODE_ENABLE_TELEMETRY=1 \
                OTEL_METRICS_EXPORTER=otlp OTEL_EXPORTER_OTLP_PROTOCOL=http/json OTEL_EXPORTER_OTLP_ENDPOINT="$url" \
                "$claude" -p --model claude-sonnet-4-5 --output-format json "Hello."
        ) </dev/null >"$run/out" 2>"$run/err" || status=$?
        end_model
        echo "HTTP_PROXY is set, NO_PROXY is '$exceptions'"
        echo "  exit $status"
        python3 - "$run" <<'PY'
import json
import sys
from pathlib import Path

paths = [json.loads(line)["path"] for line in (Path(sys.argv[1]) / "requests.jsonl").read_text().splitlines()]
for name, part in (("calls of the model", "/v1/messages"), ("telemetry", "/v1/metrics")):
    ways = {"to the proxy" if path.startswith("http:") else "directly" for path in paths if part in path}
    print(f"  {name}: {', '.join(sorted(ways))}")
PY
    done
} >"$folder/seen"
compare <<'EXPECTED'
2.1.332 (Claude Code)
HTTP_PROXY is set, NO_PROXY is ''
  exit 0
  calls of the model: to the proxy
  telemetry: directly
HTTP_PROXY is set, NO_PROXY is '127.0.0.1'
  exit 0
  calls of the model: directly
  telemetry: directly
EXPECTED
