"""A sealed run of the service with the real CLI: what it holds, where it gets, and what its job is told."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.gateway_harness import CANARY

from steadyhand.testing.live_folders import contents_below
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import Service

PAGE = b"a page of the listed host"
LOOKED = r"""
description = "Look around from inside: the credential, hosts by the proxy and past it."
[[turn]]
[[turn.tool]]
name = "Bash"
input = {{ description = "Look", command = '''
env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\0' '\n'; ls -la /run/steadyhand
echo "listed: $(curl -sS -m 20 http://127.0.0.2:{port}/page)"
echo "tunnel: $(curl -sS -m 20 --proxytunnel http://127.0.0.2:{port}/page)"
echo "redirected: $(curl -sS -m 20 -L http://127.0.0.2:{port}/moved 2>&1)"
echo "other: $(curl -sS -m 20 https://other.test/ 2>&1)"
echo "direct: $(curl -sS -m 5 --noproxy '*' http://127.0.0.2:{port}/page 2>&1)"
echo "metadata: $(curl -sS -m 5 http://169.254.169.254/latest/ 2>&1)"
echo "model: $(curl -sS -m 5 --unix-socket /run/steadyhand/model.sock http://m/v1/files 2>&1)"
python3 -c "import socket; socket.getaddrinfo('example.org', 80)" 2>&1 | tail -1
''' }}
[[turn]]
[[turn.tool]]
name = "WebFetch"
input = {{ url = "https://pages.test/", prompt = "Summarise it" }}
[[turn]]
text = "I looked."
"""


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        moved = self.path == "/moved"
        self.send_response(302 if moved else 200)
        self.send_header("location", "http://127.0.0.3/secret")
        self.send_header("content-length", "0" if moved else str(len(PAGE)))
        self.end_headers()
        self.wfile.write(b"" if moved else PAGE)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        pass


@pytest.fixture
def listed_port() -> Iterator[int]:
    """A web server of this machine on another address of its loopback."""
    server = http.server.ThreadingHTTPServer(("127.0.0.2", 0), _Page)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join(5)


def test_a_sealed_run_reaches_the_model_and_its_list_and_nothing_else(
    world_dir: Path, real_cli: Path, listed_port: int
) -> None:
    scenario = world_dir / "look.toml"
    scenario.write_text(LOOKED.format(port=listed_port), encoding="utf-8")
    config = f"""
[service]
isolation = "bwrap"
[agents.looker]
egress = ["127.0.0.2:{listed_port}"]
"""
    with (
        ScriptedModel(scenario) as model,
        Service(
            world_dir, real_cli, config=config, model=model.url, env={"ANTHROPIC_API_KEY": CANARY}
        ) as service,
    ):
        job = service.wait_until_ended(service.submit("look around", agent="looker")["id"], 90)
        assert job["state"] == "completed", (job, service.log)
        events = service.events(job["id"])
        looked, fetched = [event["data"]["output"] for event in events if event["type"] == "tool.finished"]
        found = dict(line.split(": ", 1) for line in looked.splitlines() if ": " in line)
        assert found["listed"] == found["tunnel"] == PAGE.decode()
        assert found["redirected"] == "Steadyhand: 127.0.0.3 is not on this agent's list of hosts."
        assert "response 403" in found["other"]
        assert "curl: (7)" in found["direct"]
        assert found["metadata"] == "Steadyhand: 169.254.169.254 is not on this agent's list of hosts."
        assert "passes /v1/messages and /v1/models only" in found["model"]
        assert "socket.gaierror" in found
        assert fetched == "proxy refused the connection"
        told = [event["data"]["host"] for event in events if event["type"] == "egress.refused"]
        assert told == ["127.0.0.3", "other.test", "169.254.169.254", "pages.test"]
        warned = [event["data"] for event in events if event["type"] == "warning"]
        assert {"code": "egress_host", "message": f"The agent reached 127.0.0.2:{listed_port}."} in warned
        assert "gateway_refused" in [each["code"] for each in warned]
        # The key: on every call to the model, and nowhere else.
        assert {request.headers["x-api-key"] for request in model.requests} == {CANARY}
        assert CANARY not in str([request.body for request in model.requests]) + str(job) + str(events)
        assert CANARY not in service.log
        transcript = service.client.get(f"/v1/jobs/{job['id']}/transcript")
        assert transcript.status_code == 200
        assert CANARY not in transcript.text
        assert "[redacted]" not in str(job) + str(events) + service.log + transcript.text
    holding = [path for path, content in contents_below(world_dir) if CANARY.encode() in content]
    assert holding == []
