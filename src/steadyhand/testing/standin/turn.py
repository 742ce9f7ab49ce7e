"""One turn of the stand-in: its actions for a prompt, and its result."""

from __future__ import annotations

import json
import os
import signal
import time

from . import frames, orphans, pipes
from .script import Script, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .program import StandinProgram

_FLOOD_LINE = 4096
_WAIT_FOR_SECONDS = 60.0
_TOOL_SECONDS = 60.0
_CALL_SECONDS = 600.0
_TOOL_OUTPUT = 30_000
_MAX_SHOWN = 60


class Interrupted(Exception):
    """An ``interrupt`` came while the turn was under way."""


class AgentTurn:
    """Runs one prompt's actions in order and returns the result."""

    def __init__(self, agent: StandinProgram, prompt: str) -> None:
        self.agent = agent
        self.script = Script(prompt)
        self.started_at = time.monotonic()
        self.tools_used = 0
        self.last_output = ""
        self._begun: list[str] = []
        self._streams = agent.options.output_format == "stream-json"

    def run(self) -> dict[str, Any] | None:
        """Run all actions; return the result, or None if this turn ends without one."""
        script = self.script
        if script.has("deaf"):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
        errors = script.text("stderr") if script.has("stderr") else ""
        if errors and "{last}" not in errors:
            pipes.write(errors.encode() + b"\n", stream=2)
        try:
            for name, value in script.actions:
                self._run_action(name)(value)
            if "{last}" in errors:
                pipes.write(errors.replace("{last}", self.last_output).encode() + b"\n", stream=2)
            if script.has("api_error"):
                return self._api_error()
            return self._finish()
        except Interrupted:
            return self._interrupted()

    def _run_action(self, name: str) -> Callable[[str], None]:
        acts: dict[str, Callable[[str], None]] = {
            "say": self._emit_text,
            "think": self._emit_thinking,
            "run": self._run,
            "run_deaf": lambda command: self._run(command, deaf=True),
            "call": self._call,
            "sleep": lambda seconds: self.agent.pause(float(seconds)),
            "wait_for": self._wait_for,
            "touch": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)),
            "flood": lambda amount: self._flood_events(parse_size(amount)),
            "flood_raw": lambda amount: _write_flood(
                parse_size(amount), b"this line is not JSON ".ljust(_FLOOD_LINE - 1, b".") + b"\n"
            ),
            "flood_line": lambda amount: _write_flood(parse_size(amount), b"x" * _FLOOD_LINE),
            "bad_utf8": lambda _: pipes.write(b'{"type":"system","text":"\xff\xfe\xc3("}\n\xff\xfe\n'),
            "spawn": self._spawn,
            "write": self._write,
            "commit": self._commit,
            "die": _kill_self,
            "exit_now": lambda code: os._exit(int(code)),
        }
        return acts[name]

    # What the agent says.

    def _emit_text(self, text: str) -> None:
        self._stream_block({"type": "text", "text": text}, "text_delta", "text")

    def _emit_thinking(self, text: str) -> None:
        self._stream_block(
            {"type": "thinking", "thinking": text, "signature": "c3RhbmQtaW4="}, "thinking_delta", "thinking"
        )

    def _stream_block(self, block: dict[str, Any], delta: str, key: str) -> None:
        """Write one message of one block: in pieces if they are wanted, then whole."""
        if not self._streams:
            self.agent.pause(self._pace * len(self._split(block[key])) if self._pace else 0)
            return
        ident = self._message_start()
        opened = {**block, key: ""}
        self._event({"type": "content_block_start", "index": 0, "content_block": opened}, ident)
        for piece in self._split(block[key]):
            self._event(
                {"type": "content_block_delta", "index": 0, "delta": {"type": delta, key: piece}}, ident
            )
            if self._pace:
                self.agent.pause(self._pace)
        self._message_end(ident, block, "end_turn")

    @property
    def _pace(self) -> float:
        return self.script.number("pace", 0) / 1000

    def _split(self, text: str) -> list[str]:
        width = max(1, self.script.count("chunk", 16))
        return [text[at : at + width] for at in range(0, len(text), width)]

    def _message_start(self) -> str:
        ident = frames.new_id("msg_")
        self._begun.append(ident)
        begun = frames.message(ident, self.agent.model, self.figures(""), [])
        self._event({"type": "message_start", "message": begun}, ident)
        return ident

    def _message_end(self, ident: str, block: dict[str, Any], stop_reason: str) -> None:
        whole = {
            **frames.message(ident, self.agent.model, self.figures(""), [block]),
            "context_management": None,
        }
        self._line(
            {"type": "assistant", "message": whole, "request_id": ident.replace("msg_", "req_")}, stamped=True
        )
        self._event({"type": "content_block_stop", "index": 0}, ident)
        delta = {"stop_reason": stop_reason, "stop_sequence": None}
        figures = self.figures(str(block.get("text", "")))
        self._event({"type": "message_delta", "delta": delta, "usage": figures}, ident)
        self._event({"type": "message_stop"}, ident)

    def _event(self, event: dict[str, Any], ident: str) -> None:
        if self.agent.options.include_partial:
            self._line({"type": "stream_event", "event": event, "api_message_id": ident})

    def _line(self, line: dict[str, Any], *, stamped: bool = False) -> None:
        if self._streams:
            line = {
                **line,
                "parent_tool_use_id": None,
                "session_id": self.agent.session.id,
                "uuid": frames.new_uuid(),
            }
            if line["type"] == "assistant":
                self.agent.last_line_id = line["uuid"]
            pipes.write_message({**line, "timestamp": frames.now()} if stamped else line)

    # What the agent does.

    def _tool(self, name: str, tool_input: dict[str, Any], run: Callable[[], tuple[str, bool]]) -> None:
        """Call a tool: announce it, really run it, and write its result."""
        call = frames.new_id("toolu_")
        self._run_tool_call(call, name, tool_input, run)

    def _run_tool_call(
        self, call: str, name: str, tool_input: dict[str, Any], run: Callable[[], tuple[str, bool]]
    ) -> None:
        self.tools_used += 1
        block = {"type": "tool_use", "id": call, "name": name, "input": tool_input}
        if self._streams:
            ident = self._message_start()
            self._event(
                {"type": "content_block_start", "index": 0, "content_block": {**block, "input": {}}}, ident
            )
            delta = {"type": "input_json_delta", "partial_json": json.dumps(tool_input)}
            self._event({"type": "content_block_delta", "index": 0, "delta": delta}, ident)
            self._message_end(ident, block, "tool_use")
        try:
            output, failed = run()
        except Interrupted:
            self._tool_result(
                call, "The tool use was interrupted.", failed=True, told="User rejected tool use"
            )
            raise
        self.last_output = output
        told: Any = (
            f"Error: {output}"
            if failed
            else {"stdout": output, "stderr": "", "interrupted": False, "isImage": False}
        )
        self._tool_result(call, output, failed=failed, told=told)

    def _tool_result(self, call: str, output: str, *, failed: bool, told: Any) -> None:
        block = {"tool_use_id": call, "type": "tool_result", "content": output, "is_error": failed}
        decision = {"decision": "accept", "source": "config", "reason_type": "mode"}
        self._line(
            {
                "type": "user",
                "message": {"role": "user", "content": [block]},
                "tool_use_result": told,
                "tool_result_meta": [{"id": call, "permission_decision": decision}],
            },
            stamped=True,
        )

    def _run(self, command: str, *, deaf: bool = False) -> None:
        self._tool(
            "Bash",
            {"command": command, "description": "Run a command"},
            lambda: self._shell(command, deaf=deaf),
        )

    def _shell(self, command: str, *, deaf: bool = False) -> tuple[str, bool]:
        import subprocess  # slow to import, and most prompts do without

        def before() -> None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else signal.SIG_DFL)

        # The output goes to a file and not through a pipe: what the command leaves running would keep a pipe open.
        out = os.memfd_create("output")
        child = subprocess.Popen(  # noqa: S602 - running the shell command of a test is what this is for
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=before,  # noqa: PLW1509 - one thread
        )
        end = time.monotonic() + self.script.number("lifetime", _TOOL_SECONDS)
        try:
            while child.poll() is None and time.monotonic() < end:
                self.agent.pause(0.01)
        except Interrupted:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        output = os.pread(out, _TOOL_OUTPUT, 0).decode(errors="replace").strip()
        os.close(out)
        if child.returncode:
            return f"Exit code {child.returncode}\n{output}".strip(), True
        return output, False

    def _call(self, value: str) -> None:
        name, _, text = value.partition(":")
        given, call = json.loads(text), frames.new_id("toolu_")
        params = {"name": name, "arguments": given, "_meta": {"claudecode/toolUseId": call}}
        self._run_tool_call(call, f"mcp__client__{name}", given, lambda: self._call_client_tool(params))

    def _call_client_tool(self, params: dict[str, Any]) -> tuple[str, bool]:
        response = self.agent.call_mcp_server("client", "tools/call", params, _CALL_SECONDS)
        if "error" in response:
            return str(response["error"]["message"]), True
        result = response["result"]
        return "\n".join(block["text"] for block in result["content"]), bool(result["isError"])

    def _write(self, value: str) -> None:
        name, _, text = value.partition(":")
        path = os.path.abspath(name)

        def work() -> tuple[str, bool]:
            with open(path, "w", encoding="utf-8") as target:
                target.write(text)
            return f"File created successfully at: {path}", False

        self._tool("Write", {"file_path": path, "content": text}, work)

    def _commit(self, subject: str) -> None:
        import shlex  # rarely needed

        who = "-c user.name=Stand-in -c user.email=stand-in@example.org"
        self._run(f"git add -A && git {who} commit -q -m {shlex.quote(subject)} && git rev-parse HEAD")

    def _spawn(self, value: str) -> None:
        kind, _, manner = value.partition(":")
        lifetime = self.script.number("lifetime", _TOOL_SECONDS)
        orphans.spawn(kind, ignore_signals=manner == "deaf", pids=self.script.text("pids"), lifetime=lifetime)

    def _wait_for(self, path: str) -> None:
        end = time.monotonic() + _WAIT_FOR_SECONDS
        while not os.path.exists(path) and time.monotonic() < end:
            self.agent.pause(0.01)

    def _flood_events(self, amount: int) -> None:
        fields = {"type": "system", "subtype": "flood", "session_id": self.agent.session.id, "text": ""}
        room = _FLOOD_LINE - len(json.dumps(fields)) - 1
        line = json.dumps({**fields, "text": "." * room}).encode() + b"\n"
        _write_flood(amount, line)

    # How it ends.

    def figures(self, said: str) -> dict[str, int]:
        """Return the token counts of this turn."""
        script = self.script
        return {
            "input_tokens": script.count("input", 10),
            "cache_creation_input_tokens": script.count("cache_creation", 0),
            "cache_read_input_tokens": script.count("cache_read", 0),
            "output_tokens": script.count("output", max(1, len(said) // 4)),
        }

    def _answer_text(self) -> str:
        script = self.script
        if script.has("report"):
            return json.dumps(self.agent.describe_environment(script.prompt))
        if script.has("digest"):
            import hashlib  # rarely needed

            data = script.prompt.encode()
            return json.dumps({"length": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        if script.has("history"):
            return json.dumps([*self.agent.history, ("user", script.prompt)])
        return script.text("text", f"ok: {script.prompt[:_MAX_SHOWN]}").replace("{last}", self.last_output)

    def _finish(self) -> dict[str, Any] | None:
        kind = self.script.text("result", "success")
        if kind == "none":
            return None
        answer = "" if kind == "empty" else self._answer_text()
        if kind in ("success", "truncated") and answer:
            self._emit_text(answer)
        structured = self._structured_output()
        if structured is not None:
            self._tool(
                "StructuredOutput", structured, lambda: ("Structured output provided successfully", False)
            )
            answer = json.dumps(structured, separators=(",", ":"))
        result = self._base_result(answer)
        if structured is not None:
            result.update(structured_output=structured, stop_reason="tool_use")
        result.update(self._final_result(kind, answer))
        if self.script.has("is_error"):
            result["is_error"] = True
        return result

    def _base_result(self, output: str) -> dict[str, Any]:
        figures = self.figures(output)
        cost = self.script.number("cost", 0.0012)
        total, totals = self.agent.add_usage(cost, figures)
        result = frames.result(self.agent.session.id, time.monotonic() - self.started_at, total)
        result["usage"] = frames.usage(figures)
        result["modelUsage"] = frames.model_usage(self.agent.model, totals, total)
        if self._streams:
            result["model_usage_since_last_result"] = frames.model_usage(self.agent.model, figures, cost)
        if self.agent.options.reads_stream:
            result["begun_message_ids"] = self._begun
        result["num_turns"] = self.script.count("turns", 1 + self.tools_used)
        return result

    def _final_result(self, kind: str, answer: str) -> dict[str, Any]:
        budget = self.agent.options.get("--max-budget-usd")
        if kind == "success" and budget and self.script.number("cost", 0) > float(budget):
            kind = "max_budget"
        limit = self.agent.options.get("--max-turns") or "1"
        if kind == "error":
            return _error_result("error_during_execution", "error", "the stand-in was told to fail")
        if kind == "max_turns":
            return _error_result("error_max_turns", "max_turns", f"Reached maximum number of turns ({limit})")
        if kind == "max_budget":
            text = f"Reached maximum budget (${budget or '0'})"
            return _error_result("error_max_budget_usd", "budget_exhausted", text)
        ended: dict[str, Any] = {"api_error_status": None, "result": answer}
        if kind == "refusal":
            refused = "API Error: the model's safeguards flagged this message."
            ended.update(
                is_error=True,
                stop_reason="refusal",
                terminal_reason="api_error",
                safety_stops=2,
                result=refused,
            )
        elif kind in ("success", "empty", "truncated"):
            ended.update(frames.timings())
        else:
            raise ValueError(f"the stand-in knows no result {kind!r}")
        return ended

    def _structured_output(self) -> Any:
        if self.script.has("structured"):
            return json.loads(self.script.text("structured"))
        return sample_value(self.agent.schema) if self.agent.schema is not None else None

    def _api_error(self) -> dict[str, Any]:
        status = self.script.count("api_error", 500)
        text = f"API Error: {status} the stand-in was told to fail"
        kinds = {
            400: "invalid_request_error",
            401: "authentication_error",
            402: "billing_error",
            429: "rate_limit_error",
        }
        kind = kinds.get(status, "api_error")
        said = frames.message(
            frames.new_uuid(), "<synthetic>", self.figures(""), [{"type": "text", "text": text}]
        )
        marks = {
            "error": "unknown",
            "is_api_error_message": True,
            "api_error_status": status,
            "api_error_type": kind,
        }
        self._line(
            {"type": "assistant", "message": {**said, "context_management": None}, **marks}, stamped=True
        )
        result = self._base_result("")
        result.update(stop_reason="stop_sequence", terminal_reason="api_error", is_error=True, result=text)
        result.update(api_error_status=status, api_error_type=kind)
        return result

    def _interrupted(self) -> dict[str, Any]:
        text = (
            "[Request interrupted by user for tool use]"
            if self.tools_used
            else "[Request interrupted by user]"
        )
        self._line(
            {"type": "user", "message": {"role": "user", "content": [{"type": "text", "text": text}]}},
            stamped=True,
        )
        where = "aborted_tools" if self.tools_used else "aborted_streaming"
        return {
            **self._base_result(""),
            **_error_result("error_during_execution", where, "[ede_diagnostic] interrupted"),
        }


def sample_value(schema: dict[str, Any]) -> Any:
    """Return a small value for a plain JSON schema."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        properties = schema.get("properties", {})
        return {
            name: sample_value(properties.get(name, {"type": "string"}))
            for name in schema.get("required", properties)
        }
    if kind == "array":
        return [sample_value(schema.get("items", {"type": "string"}))]
    values: dict[str, Any] = {"string": "stand-in", "integer": 1, "number": 1, "boolean": True}
    return values.get(kind)


def _error_result(subtype: str, reason: str, text: str) -> dict[str, Any]:
    return {
        "subtype": subtype,
        "is_error": True,
        "terminal_reason": reason,
        "stop_reason": "tool_use",
        "errors": [text],
    }


def _write_flood(amount: int, line: bytes) -> None:
    """Write so many bytes to stdout, in blocks of a few hundred lines."""
    block = line * max(1, (1 << 20) // len(line))
    left = amount
    while left > 0:
        pipes.write(block[:left] if left < len(block) else block)
        left -= len(block)


def _kill_self(value: str) -> None:
    number = int(value) if value.isdigit() else int(signal.Signals["SIG" + value.upper().replace("SIG", "")])
    signal.signal(number, signal.SIG_DFL) if number not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), number)
    time.sleep(_WAIT_FOR_SECONDS)
