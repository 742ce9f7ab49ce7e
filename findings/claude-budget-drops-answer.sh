#!/bin/sh
# Finding: `claude --max-budget-usd` drops an answer that is complete. The limit is compared after each response; if the
# last one passed it, the run ends with exit code 1 and its result has no text, although the model had ended its turn,
# nothing more was to be asked, and the cost is charged.
# Who meets it: programs that limit the cost of a run and read its result.
# Versions: claude 2.1.332 (claude-agent-sdk 0.2.189).
# Steadyhand: its gateway holds the budget before each call, and the CLI gets no limit then, so a complete answer
# stays: src/steadyhand/serve/wiring.py, tests/runner/claude/test_plain.py.
set -eu
. "$(dirname "$0")/setup.inc"
{
    install_claude
    replies='[{"text": "The build fails because of a missing import.", "in": 1000, "out": 2000}]'
    for budget in 1 0.01; do
        ask_claude "$replies" --max-budget-usd "$budget" "Why does the build fail?"
        echo "A budget of $budget dollars"
        echo "  exit $status, $calls calls of the model"
        result subtype is_error stop_reason total_cost_usd result errors
    done
} >"$folder/seen"
compare <<'EXPECTED'
2.1.332 (Claude Code)
A budget of 1 dollars
  exit 0, 1 calls of the model
  subtype: "success"
  is_error: false
  stop_reason: "end_turn"
  total_cost_usd: 0.033
  result: "The build fails because of a missing import."
  errors: -
A budget of 0.01 dollars
  exit 1, 1 calls of the model
  subtype: "error_max_budget_usd"
  is_error: true
  stop_reason: "end_turn"
  total_cost_usd: 0.033
  result: -
  errors: ["Reached maximum budget ($0.01)"]
EXPECTED
