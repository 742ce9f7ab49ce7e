"""The program itself: options, prompt, turns, exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from . import frames, home, pipes
from .options import Options, UsageError
from .script import InvalidDirective
from .turn import AgentTurn, Interrupted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

EXIT_TERMINATED = 143
EXIT_BAD_DIRECTIVE = 64
_INPUT_WAIT_SECONDS = 0.01
_ROOT = "--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons"
_NO_INPUT = "Error: Input must be provided either through stdin or as a prompt argument when using --print"
_ONLY_SPACE = (
    "Error: Input contained only whitespace. "
    "Provide a prompt with text through stdin or as a prompt argument when using --print"
)


class StandinProgram:
    """One process: its options, its session and what it has spent so far."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.agents = home.list_agents(options.get("--agents"), options.get("--setting-sources"))
        schema = options.get("--json-schema")
        self.schema: dict[str, Any] | None = json.loads(schema) if schema else None
        self.model = _resolve_model(options.get("--model") or self._agent_model())
        self.history: list[tuple[str, str]] = []
        self.session = self._open_session()
        self._cost = 0.0
        self._totals: dict[str, int] = {}
        self._lines = pipes.StdinReader()
        self._prompts: list[dict[str, Any]] = []
        self._asked = 0
        self._answers: dict[str, dict[str, Any]] = {}
        self._interrupted = False
        self._busy = False
        self._failed = False
        self._exit: int | None = None

    # One prompt from stdin, or a conversation in JSON lines.

    def run_plain(self, prompt: str) -> int:
        """Answer one prompt; return the exit code."""
        if not prompt:
            raise UsageError(_NO_INPUT)
        if not prompt.strip():
            raise UsageError(_ONLY_SPACE)
        name = self.options.get("--agent")
        known = [agent["name"] for agent in self.agents]
        if name is not None and name not in known:
            raise UsageError(f"--agent '{name}' not found. Available agents: {', '.join(known)}")
        self._run_turn(prompt, prompt)
        return self._exit_code()

    def run_stream(self) -> int:
        """Answer prompts and control requests until the end of input; return the exit code."""
        while True:
            while self._prompts:
                self._answer(self._prompts.pop(0))
            if self._lines.ended:
                return self._exit_code()
            for message in self._lines.read_messages(None):
                self._handle_message(message)

    def pause(self, seconds: float) -> None:
        """Wait, and handle control requests meanwhile; raise Interrupted for an interrupt."""
        end = time.monotonic() + seconds
        while True:
            left = max(0.0, end - time.monotonic())
            if self.options.reads_stream and not self._lines.ended:
                for message in self._lines.read_messages(left):
                    self._handle_message(message)
            else:
                time.sleep(left)
            if self._interrupted:
                self._interrupted = False
                raise Interrupted
            if time.monotonic() >= end:
                return

    def call_mcp_server(
        self, name: str, method: str, params: dict[str, Any], seconds: float
    ) -> dict[str, Any]:
        """Call a server of the caller's own (MCP over control requests) and return its JSON-RPC answer."""
        self._asked += 1
        ident = f"server-{self._asked}"
        response = {"jsonrpc": "2.0", "id": self._asked, "method": method, "params": params}
        request = {"subtype": "mcp_message", "server_name": name, "message": response}
        pipes.write_message({"type": "control_request", "request_id": ident, "request": request})
        end = time.monotonic() + seconds
        while ident not in self._answers:
            if self._lines.ended or time.monotonic() > end:
                raise Interrupted
            self.pause(_INPUT_WAIT_SECONDS)
        return self._answers.pop(ident)

    def add_usage(self, cost: float, figures: dict[str, int]) -> tuple[float, dict[str, int]]:
        """Add a turn's cost and tokens; return the totals of this process so far."""
        self._cost += cost
        for key, value in figures.items():
            self._totals[key] = self._totals.get(key, 0) + value
        return self._cost, dict(self._totals)

    def describe_environment(self, prompt: str) -> dict[str, Any]:
        """Return the environment of this process, for tests to look at."""
        return {
            "argv": sys.argv,
            "cwd": os.getcwd(),
            "environment": dict(os.environ),
            "uid": os.getuid(),
            "gid": os.getgid(),
            "groups": os.getgroups(),
            "pid": os.getpid(),
            "parent": os.getppid(),
            "process_group": os.getpgid(0),
            "session_id": self.session.id,
            "agent": self.options.get("--agent"),
            "model": self.model,
            "agents": [agent["name"] for agent in self.agents],
            "files": sorted(os.listdir(".")),
            "prompt_length": len(prompt),
        }

    def _answer(self, message: dict[str, Any]) -> None:
        content = message["message"].get("content", "")
        prompt = home.text_of(content)
        if message.get("shouldQuery") is False:
            self._record_history("user", prompt, content)
            self._emit_init()
            pipes.write_message(self._acknowledge())
            return
        self._run_turn(prompt, content)

    def _run_turn(self, prompt: str, content: Any) -> None:
        self._emit_init()
        if self.options.output_format == "stream-json":
            status = {"type": "system", "subtype": "status", "status": "requesting"}
            pipes.write_message({**status, "session_id": self.session.id, "uuid": frames.new_uuid()})
        self.session.record("user", content)
        turn = AgentTurn(self, prompt)
        self._busy = True
        result = turn.run()
        self._busy = False
        script = turn.script
        if result is not None:
            self._print(result, cut=script.text("result") == "truncated")
            self._failed = bool(result["is_error"])
            answer = str(result.get("result", ""))
            self.history.append(("user", prompt))
            self._record_history("assistant", answer, [{"type": "text", "text": answer}])
        if script.has("exit"):
            self._exit = script.count("exit", 0)
        if script.has("hang"):
            time.sleep(script.number("hang", 0))
        if result is None and not self.options.reads_stream:
            return
        if result is None or script.text("result") == "truncated":
            # A process that loses its result has died; it does not wait for the next prompt.
            os._exit(self._exit_code())

    def _print(self, result: dict[str, Any], *, cut: bool) -> None:
        line = json.dumps(result, separators=(",", ":")).encode() + b"\n"
        if cut:
            pipes.write(line[: len(line) // 2])
        elif self.options.output_format == "text":
            pipes.write(str(result.get("result", "")).encode() + b"\n")
        else:
            pipes.write(line)

    def _acknowledge(self) -> dict[str, Any]:
        """Return the result of a turn that was only added to the history: nothing was asked, nothing was spent."""
        nothing = dict.fromkeys(
            ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens"), 0
        )
        result = frames.result(self.session.id, 0.0, self._cost)
        result.update(
            usage=frames.usage(nothing),
            num_turns=0,
            stop_reason=None,
            result="",
            model_usage_since_last_result={},
        )
        del result["terminal_reason"]
        return result

    def _exit_code(self) -> int:
        return self._exit if self._exit is not None else int(self._failed)

    # Messages on stdin.

    def _handle_message(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind == "control_request":
            self._handle_control_request(str(message.get("request_id")), message.get("request") or {})
        elif kind == "control_response":
            response = message["response"]
            self._answers[str(response["request_id"])] = response["response"]["mcp_response"]
        elif kind == "user":
            self._prompts.append(message)
        elif kind == "assistant":
            content = message["message"].get("content", "")
            self._record_history("assistant", home.text_of(content), content)

    def _handle_control_request(self, ident: str, request: dict[str, Any]) -> None:
        subtype = request.get("subtype")
        answer: dict[str, Any]
        if subtype == "initialize":
            self.schema = request.get("jsonSchema") or self.schema
            for name, about in (request.get("agents") or {}).items():
                self.agents.append({"name": name, "description": str(about.get("description", ""))})
            answer = frames.initialized(self.agents)
        elif subtype == "interrupt":
            self._interrupted = self._busy
            answer = {"still_queued": []}
        elif subtype == "set_model":
            self.model = _resolve_model(request.get("model"))
            answer = {"model": self.model}
        elif subtype == "set_permission_mode":
            answer = {"mode": request.get("mode")}
        else:
            text = f"Unsupported control request subtype: {subtype}"
            refusal = {
                "subtype": "error",
                "request_id": ident,
                "error": text,
                "error_code": "unsupported_request",
            }
            pipes.write_message({"type": "control_response", "response": refusal})
            return
        success: dict[str, Any] = {"subtype": "success", "request_id": ident, "response": answer}
        if subtype == "initialize":
            success.update(pending_permission_requests=[], pending_user_dialog_requests=[])
        pipes.write_message({"type": "control_response", "response": success})

    def _emit_init(self) -> None:
        if self.options.output_format == "stream-json":
            wanted = self.options.get("--tools")
            tools = frames.TOOLS if wanted is None else [name for name in wanted.split(",") if name]
            names = [agent["name"] for agent in self.agents]
            pipes.write_message(frames.init(self.session.id, self.model, names, tools))

    def _record_history(self, role: str, text: str, content: Any) -> None:
        self.history.append((role, text))
        self.session.record(role, content)

    # Who it is.

    def _open_session(self) -> home.Session:
        options = self.options
        keep = "--no-session-persistence" not in options.flags
        resumed = options.get("--resume")
        if resumed is not None:
            session = home.Session(resumed, keep=keep)
            if not session.exists:
                raise UsageError(f"No conversation found with session ID: {resumed}")
            self.history += session.turns()
            return (
                home.Session(frames.new_uuid(), keep=keep) if "--fork-session" in options.flags else session
            )
        wanted = options.get("--session-id")
        session = home.Session(wanted or frames.new_uuid(), keep=keep)
        if wanted and session.exists:
            raise UsageError(f"Error: Session ID {wanted} is already in use.")
        return session

    def _agent_model(self) -> str | None:
        name = self.options.get("--agent")
        found = [agent.get("model") for agent in self.agents if agent["name"] == name]
        return found[-1] if found and found[-1] != "inherit" else None


def _refuse_root(options: Options) -> None:
    trusted = "--dangerously-skip-permissions" in options.flags
    if trusted and os.geteuid() == 0 and os.environ.get("IS_SANDBOX") != "1":
        raise UsageError(_ROOT)


def _resolve_model(wanted: str | None) -> str:
    """Return the model's full name for an alias; an unknown name stays as it is."""
    return frames.MODELS.get(wanted or "default", wanted or frames.MODEL)


def main(argv: list[str]) -> int:
    """Run with these arguments (without the program's name); return the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_TERMINATED))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        options = Options(argv)
        if "--version" in options.flags:
            pipes.write(f"{frames.VERSION} (Claude Code)\n".encode())
            return 0
        _refuse_root(options)
        agent = StandinProgram(options)
        if options.reads_stream:
            return agent.run_stream()
        from_stdin = "" if os.isatty(0) else pipes.read_all().decode(errors="replace")
        return agent.run_plain("\n".join(part for part in (options.prompt, from_stdin) if part))
    except (UsageError, pipes.InvalidLine) as error:
        pipes.write(f"{error}\n".encode(), stream=2)
        return 1
    except InvalidDirective as error:
        pipes.write(f"stand-in: {error}\n".encode(), stream=2)
        return EXIT_BAD_DIRECTIVE
    except BrokenPipeError:
        return 1
