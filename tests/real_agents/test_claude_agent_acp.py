"""The adapter of Claude to ACP against the scripted model: one prompt by the protocol's version 1."""

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.real_agents.real_agents import NODE, installed_directory

from steadyhand.testing.cli import isolated_env
from steadyhand.testing.model import ScriptedModel


class AcpConversation:
    """An agent that is talked to in lines of JSON-RPC; each permission that it asks for is given once."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.updates: list[dict[str, Any]] = []
        self._last_id = 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last_id += 1
        self._send({"id": self._last_id, "method": method, "params": params})
        assert self.process.stdout
        for line in self.process.stdout:
            message = json.loads(line)
            if "method" not in message:
                assert message["id"] == self._last_id
                assert "error" not in message, message["error"]
                return dict(message["result"])
            if message["method"] == "session/update":
                self.updates.append(message["params"]["update"])
            elif message["method"] == "session/request_permission":
                options = message["params"]["options"]
                [chosen] = [one["optionId"] for one in options if one["kind"] == "allow_once"]
                outcome = {"outcome": "selected", "optionId": chosen}
                self._send({"id": message["id"], "result": {"outcome": outcome}})
        raise AssertionError(f"the agent ended before it answered {method}")

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self.process.stdin.flush()


@pytest.mark.long
def test_claude_edits_a_file_by_acp_and_ends_with_its_input(
    world_dir: Path, scripted_model: ScriptedModel
) -> None:
    home, checkout = world_dir / "home", world_dir / "checkout"
    home.mkdir()
    checkout.mkdir()
    program = (installed_directory("claude-agent-acp") / ".bin" / "claude-agent-acp").resolve()
    with subprocess.Popen(
        [NODE, program],
        cwd=checkout,
        env=isolated_env(home, scripted_model.url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        guard = threading.Timer(150, process.kill)
        guard.start()
        try:
            talk = AcpConversation(process)
            assert talk.call("initialize", protocolVersion=1, clientCapabilities={})["protocolVersion"] == 1
            session = talk.call("session/new", cwd=str(checkout), mcpServers=[])["sessionId"]
            prompt = [{"type": "text", "text": "[[scenario:edit]] please"}]
            answer = talk.call("session/prompt", sessionId=session, prompt=prompt)
            assert process.stdin
            process.stdin.close()
            assert process.wait(60) == 0
        finally:
            guard.cancel()
            process.kill()
    assert answer["stopReason"] == "end_turn"
    assert (checkout / "notes.txt").read_text() == "colour: green\n"
    assert {"agent_message_chunk", "tool_call"} <= {update["sessionUpdate"] for update in talk.updates}
    assert [request.turn_index for request in scripted_model.requests] == [0, 1, 2, 3]
