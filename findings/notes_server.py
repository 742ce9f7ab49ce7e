"""An MCP server on standard input and output: notes_server.py NAME,NAME.. FILE. FILE gets the names of its calls."""

import json
import sys
from pathlib import Path

names, log = sys.argv[1].split(","), Path(sys.argv[2])
for line in sys.stdin:
    request = json.loads(line)
    method = request["method"]
    if "id" not in request:
        continue
    if method == "initialize":
        version = request["params"]["protocolVersion"]
        about = {"name": "notes", "version": "1"}
        answer = {"result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": about}}
    elif method == "tools/list":
        schema = {"type": "object", "properties": {}}
        tools = [{"name": name, "description": f"The tool {name}", "inputSchema": schema} for name in names]
        answer = {"result": {"tools": tools}}
    elif method == "tools/call":
        called = request["params"]["name"]
        with log.open("a") as file:
            file.write(called + "\n")
        answer = {"result": {"content": [{"type": "text", "text": called}]}}
    else:
        answer = {"error": {"code": -32601, "message": "Method not found"}}
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], **answer}), flush=True)
