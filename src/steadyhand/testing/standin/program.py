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
_STATE_VARIABLE = "CLAUDE_CODE_SDK_READS_SESSION_STATE"
_CLEAR = "/clear"
_CLEAR_CAVEAT = "<local-command-caveat>The next messages come from a command.</local-command-caveat>"
_CLEAR_NAME = "<command-name>/clear</command-name>"
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
        self._message_ids: list[str | None] = []
        self.last_line_id: str | None = None
        self.session = self._open_session()
        self._is_initialised = False
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
        if prompt.strip() == _CLEAR and not message.get("client_composed"):
            self._clear(message.get("uuid") or frames.new_uuid())
            return
        self._run_turn(prompt, content, message.get("uuid"))

    def _clear(self, message_id: str) -> None:
        """Begin a new session; like the real one, leave a word of the command in it."""
        self._emit_state("running")
        before, after = self.session.id, frames.new_uuid()
        pipes.write_message(frames.conversation_reset(before, message_id))
        pipes.write_message(frames.background_tasks(before))
        self.history.clear()
        self._message_ids.clear()
        self._cost = 0.0
        self._totals.clear()
        self.session = home.Session(after, keep=self.session.keeps)
        self._record_history("user", _CLEAR_CAVEAT, _CLEAR_CAVEAT)
        self._record_history("user", _CLEAR_NAME, _CLEAR_NAME, message_id)
        self._emit_init()
        pipes.write_message({**self._acknowledge(), "local_command": "clear"})
        self._emit_state("idle")

    def _rewind(self, target: str, last_seen: Any) -> dict[str, Any]:
        """Remove a message of the user and all after it from the conversation.

        The caller has to know the user's last message, which is the target unless it says otherwise.
        """
        if target not in self._message_ids:
            return frames.not_rewound("target_not_found")
        users = [ident for at, ident in enumerate(self._message_ids) if self.history[at][0] == "user"]
        if users[-1] != (last_seen or target):
            return frames.not_rewound("stale_target")
        at = self._message_ids.index(target)
        text = self.history[at][1]
        del self.history[at:], self._message_ids[at:]
        self.session.cut(target, text)
        return frames.rewound(target, text, self._message_ids[-1] if at else None)

    def _run_turn(self, prompt: str, content: Any, message_id: str | None = None) -> None:
        self._emit_state("running")
        self._emit_init()
        if self.options.output_format == "stream-json":
            status = {"type": "system", "subtype": "status", "status": "requesting"}
            pipes.write_message({**status, "session_id": self.session.id, "uuid": frames.new_uuid()})
        prompt_id = self.session.record("user", content, message_id)
        self.last_line_id = None
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
            self._message_ids.append(prompt_id)
            block = {"type": "text", "text": answer}
            self._record_history("assistant", answer, [block], self.last_line_id)
            self._emit_state("idle")
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
        if subtype == "rewind_conversation" and not isinstance(request.get("target_message_uuid"), str):
            _refuse(ident, "rewind_conversation: target_message_uuid must be a string")
            return
        answer = self._answer_to(subtype, request)
        if answer is None:
            text = f"Unsupported control request subtype: {subtype}"
            _refuse(ident, text, error_code="unsupported_request")
            return
        success: dict[str, Any] = {"subtype": "success", "request_id": ident, "response": answer}
        if subtype == "initialize":
            success.update(pending_permission_requests=[], pending_user_dialog_requests=[])
        pipes.write_message({"type": "control_response", "response": success})

    def _answer_to(self, subtype: Any, request: dict[str, Any]) -> dict[str, Any] | None:
        """Return the answer to a control request; None if it is not known."""
        if subtype == "initialize":
            return self._initialize(request)
        if subtype == "interrupt":
            self._interrupted = self._busy
            return {"still_queued": []}
        if subtype == "set_model":
            self.model = _resolve_model(request.get("model"))
            return {"model": self.model}
        if subtype == "set_permission_mode":
            return {"mode": request.get("mode")}
        if subtype == "get_session_cost":
            return frames.session_cost(self._cost, self._totals)
        if subtype == "rewind_conversation":
            return self._rewind(request["target_message_uuid"], request.get("last_seen_user_message_uuid"))
        return None

    def _initialize(self, request: dict[str, Any]) -> dict[str, Any]:
        """Apply the fields of the first request; those of a later one change nothing, as in the real one."""
        if not self._is_initialised:
            self._is_initialised = True
            self.schema = request.get("jsonSchema") or self.schema
            for name, about in (request.get("agents") or {}).items():
                self.agents.append({"name": name, "description": str(about.get("description", ""))})
        return frames.initialized(self.agents)

    def _emit_state(self, state: str) -> None:
        if self.options.output_format == "stream-json" and os.environ.get(_STATE_VARIABLE) == "1":
            pipes.write_message(frames.session_state(self.session.id, state))

    def _emit_init(self) -> None:
        if self.options.output_format == "stream-json":
            wanted = self.options.get("--tools")
            tools = frames.TOOLS if wanted is None else [name for name in wanted.split(",") if name]
            names = [agent["name"] for agent in self.agents]
            pipes.write_message(frames.init(self.session.id, self.model, names, tools))

    def _record_history(self, role: str, text: str, content: Any, message_id: str | None = None) -> None:
        self.history.append((role, text))
        self._message_ids.append(self.session.record(role, content, message_id))

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
            self._message_ids += [None] * len(self.history)
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


def _refuse(ident: str, error: str, **more: str) -> None:
    refusal = {"subtype": "error", "request_id": ident, "error": error, **more}
    pipes.write_message({"type": "control_response", "response": refusal})


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
