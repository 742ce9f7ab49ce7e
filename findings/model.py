"""A scripted model: the Messages API and the Responses API on loopback, answered from a file.

Usage: python3 model.py FOLDER. FOLDER/replies.json is a list; request n gets reply n, and the last reply repeats:
  {"text": "..", "stop": "max_tokens", "in": 10, "out": 5}   an answer in text; all but "text" may be left out
  {"tool": "Name", "input": {..}}                            a call of a tool
  {"status": 401, "headers": {..}, "type": "..", "text": ".."}  an error
  {"events": [{"type": "..", ..}]}                           a stream of exactly these events
The address is written to FOLDER/url, and a line for each request to FOLDER/requests.jsonl.
"""

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

FOLDER = Path(sys.argv[1])
REPLIES = json.loads((FOLDER / "replies.json").read_text())
REQUESTS = FOLDER / "requests.jsonl"
LOCK = Lock()


def events_of(reply: dict[str, Any], model: str) -> Iterator[dict[str, Any]]:
    """Yield the events of one streamed message."""
    usage = {"input_tokens": reply.get("in", 10), "output_tokens": reply.get("out", 5)}
    if "tool" in reply:
        block = {"type": "tool_use", "id": "toolu_1", "name": reply["tool"], "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(reply["input"])}
        stop = "tool_use"
    else:
        block = {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": reply["text"]}
        stop = reply.get("stop", "end_turn")
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": []}
    yield {"type": "message_start", "message": {**message, "stop_reason": None, "usage": usage}}
    yield {"type": "content_block_start", "index": 0, "content_block": block}
    yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    yield {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": usage}
    yield {"type": "message_stop"}


class Handler(BaseHTTPRequestHandler):
    """Answers each POST with the next reply."""

    def do_POST(self) -> None:
        """Log the request and send its reply."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with LOCK, REQUESTS.open("a") as log:
            log.write(json.dumps({"path": self.path, "body": body}) + "\n")
            log.flush()
            number = len(REQUESTS.read_text().splitlines())
        reply = REPLIES[min(number, len(REPLIES)) - 1]
        if "status" in reply:
            error = {"type": reply["type"], "message": reply["text"]}
            data = json.dumps({"type": "error", "error": error}).encode()
            kind = "application/json"
        else:
            events = reply["events"] if "events" in reply else events_of(reply, body.get("model", ""))
            data = "".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in events).encode()
            kind = "text/event-stream"
        self.send_response(reply.get("status", 200))
        headers = {"content-type": kind, "content-length": str(len(data)), **reply.get("headers", {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        """Refuse: the scripts need nothing else."""
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
(FOLDER / "url.new").write_text(f"http://127.0.0.1:{server.server_port}")
(FOLDER / "url.new").rename(FOLDER / "url")
server.serve_forever()
