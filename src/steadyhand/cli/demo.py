"""`steadyhand demo`: a failing test, a service, a real agent that fixes it, and the passing test.

The demo works as a user does: a service in its own process, the HTTP API, and the diff of the job. The agent is real.
Its model is the scripted one, which costs nothing; that of the CLI is the real one if ANTHROPIC_API_KEY is set.
"""

import json
import os
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from steadyhand.cli import client_options
from steadyhand.cli.console import CommandOutput
from steadyhand.cli.demo_agents import DemoAgent
from steadyhand.cli.exit_codes import ExitCode
from steadyhand.cli.progress import EventPrinter, Progress, create_view, summary_line
from steadyhand.cli.sanitize import abbreviate_output, as_mapping, display_usd, one_line, sanitize
from steadyhand.cli.tables import diff_text
from steadyhand.client import Client
from steadyhand.config import settings as configuration
from steadyhand.config.file_schema import ServiceTable
from steadyhand.errors import ConfigError, ServiceUnreachable, SteadyhandError
from steadyhand.ports import DEFAULT_PATH
from steadyhand.testing.example import make_repository
from steadyhand.testing.model import ScriptedModel
from steadyhand.text_lines import split_lines

PROMPT = "Fix the failing test."
START_SECONDS, STOP_SECONDS, COMMAND_SECONDS = 60.0, 45.0, 60.0
JOB_SECONDS = 600
_DUMMY_KEY = "sk-ant-demo-no-real-key"
_PASSED_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "STEADYHAND_ISOLATION")


class DemoFailed(SteadyhandError):
    """A step of the demo failed."""

    code = "demo"


def run_demo(
    command_output: CommandOutput, *, clean_up: bool, as_json: bool, agent: DemoAgent | None = None
) -> ExitCode:
    """Run the demo and return its exit code; with `as_json` the job goes to stdout as JSON.

    Without an `agent` it is that of the CLI that comes along.
    """
    console = command_output.err if as_json else command_output.out
    root = _create_directory()
    try:
        job = _play_demo(console, root, agent)
        if as_json:
            command_output.print_json(job)
        _print_next_steps(console, root, job, agent, is_kept=not clean_up)
    except (DemoFailed, ConfigError, ServiceUnreachable) as error:
        command_output.print_note(f"The demo failed: {error.detail}", "red")
        _print_log(command_output, root / "service.log")
        return ExitCode.FAILED
    finally:
        if clean_up:
            shutil.rmtree(root, ignore_errors=True)
    return ExitCode.COMPLETED


def _play_demo(console: Console, root: Path, agent: DemoAgent | None) -> dict[str, Any]:
    repository = root / "shop"
    _print_step(console, 1, f"A small repository with a failing test: {repository}")
    make_repository(repository)
    tests_pass, output = _run_test(repository)
    _print_output(console, output)
    if tests_pass:
        raise DemoFailed("the test of the example passes at first, but it must fail.")
    with ExitStack() as stack:
        environment = _service_environment(console, stack, root, agent)
        _print_step(console, 3, "The service, in a process of its own")
        url = stack.enter_context(_service(root, environment))
        console.print(Text(f"  steadyhand serve  →  {url}", style="dim"))
        console.print(Text(f"  {_describe_isolation(environment)}", style="dim"), soft_wrap=True)
        token = (root / "data" / "admin.key").read_text("ascii").strip()
        client = stack.enter_context(client_options.command_client(url, token))
        job = _run_job(console, client, repository, agent)
    _print_step(console, 6, "The test again")
    tests_pass, output = _run_test(repository)
    _print_output(console, output)
    if not tests_pass:
        raise DemoFailed("the test still fails.")
    console.print(Text("  The test passes.", style="bold green"))
    return job


def _run_job(console: Console, client: Client, repository: Path, agent: DemoAgent | None) -> dict[str, Any]:
    """Submit the job, show its progress and its changes, and apply the changes to the repository."""
    body = {
        "prompt": PROMPT,
        "workspace": str(repository),
        "title": "The demo",
        "timeout_seconds": JOB_SECONDS,
        **({} if agent is None else {"agent": agent.name}),
    }
    _print_step(console, 4, "A job over HTTP, and the work of the agent")
    console.print(Text(textwrap.indent(f"POST /v1/jobs {json.dumps(body, indent=2)}", "  "), style="dim"))
    job_id = client.submit(**body).id  # type: ignore[arg-type]  # the fields are of several types
    console.print(Text(f"  202 Accepted: job {one_line(job_id, 20)}\n", style="dim"))
    progress = Progress()
    with create_view(console, progress) as view:
        EventPrinter(view, progress).print_events(event.document for event in client.follow(job_id))
    job = client.wait(job_id, timeout_seconds=JOB_SECONDS).document
    console.print(summary_line(job))
    if job.get("state") != "completed":
        raise DemoFailed(f"the job ended as {one_line(job.get('state'), 20)}.")
    _print_step(console, 5, "Its changes, applied to the repository")
    diff = client.diff(job_id)
    console.print(diff_text(diff.decode("utf-8", "replace")))
    code, output = _run_command(["git", "apply", "-"], repository, stdin=diff)
    if code != 0:
        raise DemoFailed(f"git could not apply the diff: {one_line(output)}")
    console.print(Text("  git apply: done", style="dim"))
    return job


def _print_next_steps(
    console: Console, root: Path, job: Mapping[str, Any], agent: DemoAgent | None, *, is_kept: bool
) -> None:
    cost, job_id = as_mapping(job.get("cost")), one_line(job.get("id", ""), 20)
    is_scripted = agent is not None or not _api_key()
    scripted = "; the scripted model's tokens cost nothing" if cost and is_scripted else ""
    console.print(Text(f"\nCost: {display_usd(cost.get('usd', '0'))} by the price list{scripted}."))
    if not is_kept:
        return
    data, command = root / "data", _program_name()
    console.print(
        Text(
            f"\nTo look at the job, start the service on the demo's data:\n"
            f"  export STEADYHAND_DATA_DIR={data}\n"
            f"  {command} serve &\n"
            f"  {command} show {job_id}\n"
            f"  {command} logs {job_id}\n"
            f'  curl -H "Authorization: Bearer $(cat $STEADYHAND_DATA_DIR/admin.key)" \\\n'
            f"    http://127.0.0.1:8080/v1/jobs/{job_id}\n"
            f"Remove all of it: rm -r {root}"
        ),
        soft_wrap=True,
    )


def _describe_isolation(environment: Mapping[str, str]) -> str:
    """Return a description of the agent's isolation; a service that cannot offer it does not start."""
    if environment.get("STEADYHAND_ISOLATION", ServiceTable().isolation) == "none":
        return "isolation none, as asked for: the agent shares this machine"
    return "isolation bwrap: the agent reaches its checkout and the model, and no more"


def _program_name() -> str:
    """Return the command that starts this program; `make demo` uses one that is not on PATH."""
    program = Path(sys.argv[0])
    return shlex.quote(str(program)) if program.name == "steadyhand" else "steadyhand"


# --- the parts ---------------------------------------------------------------------------------


def _create_directory() -> Path:
    root = Path(tempfile.mkdtemp(prefix="steadyhand-demo-"))
    if os.geteuid() == 0:
        root.chmod(0o755)  # agents run as another user then and must enter it
    return root


def _api_key() -> str | None:
    return configuration.load_settings().anthropic_api_key


def _service_environment(
    console: Console, stack: ExitStack, root: Path, agent: DemoAgent | None
) -> dict[str, str]:
    """Return a minimal environment for the service, with a model. Raise `ConfigError` without the agent's program."""
    settings = configuration.load_settings()
    environment = {
        name: value
        for name, value in settings.environment.items()
        if name in _PASSED_VARIABLES or name.startswith("OTEL_")  # a receiver of its trace
    }
    environment["STEADYHAND_DATA_DIR"] = str(root / "data")
    environment["STEADYHAND_SERVICE__REATTACH_SECONDS"] = "0"  # nobody starts another service there
    if agent is not None:
        model = stack.enter_context(ScriptedModel("fix-the-test"))
        environment["STEADYHAND_CONFIG"] = str(agent.write_settings(root, settings, model.url))
        _print_step(console, 2, "The scripted model: nothing is spent")
        _print_dim(console, f"  The agent is the real {agent.title}; only its model is played back.")
        return environment
    if settings.anthropic_api_key:
        _print_step(console, 2, "The real model: ANTHROPIC_API_KEY is set, so this costs a few cents")
        environment["ANTHROPIC_API_KEY"] = settings.anthropic_api_key
        if settings.base_url:
            environment["ANTHROPIC_BASE_URL"] = settings.base_url
        return environment
    _print_step(console, 2, "The scripted model: ANTHROPIC_API_KEY is not set, so nothing is spent")
    _print_dim(console, "  The agent is the real claude CLI; only its model is played back.")
    model = stack.enter_context(ScriptedModel("fix-the-test"))
    environment["ANTHROPIC_API_KEY"] = _DUMMY_KEY
    environment["ANTHROPIC_BASE_URL"] = model.url
    return environment


@contextmanager
def _service(root: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Run `steadyhand serve` on a free port for the length of the block, and yield its address."""
    command = [sys.executable, "-m", "steadyhand", "serve", "--port", "0"]
    with (root / "service.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=log)
    try:
        yield _read_address(process)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)


def _read_address(process: "subprocess.Popen[bytes]") -> str:
    """Read the address from the first line that the service prints."""
    assert process.stdout is not None  # noqa: S101  # it was asked for
    deadline, received = time.monotonic() + START_SECONDS, b""
    while b"\n" not in received:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(process.stdout.fileno(), 4096) if ready else b""
        if not chunk:
            raise DemoFailed("the service did not start.")
        received += chunk
    address = received.split(b"\n")[0].decode("utf-8", "replace").rsplit(" ", 1)[-1]
    if not address.startswith("http://"):
        raise DemoFailed(f"the service printed {one_line(address)} instead of its address.")
    return address


def _run_test(repository: Path) -> tuple[bool, str]:
    code, output = _run_command([sys.executable, "-B", "-m", "unittest", "-q"], repository)
    return code == 0, output


def _run_command(command: list[str], directory: Path, stdin: bytes = b"") -> tuple[int, str]:
    """Run a command there with only a PATH in its environment; return its exit code and its output."""
    environment = {"PATH": DEFAULT_PATH, "HOME": str(directory), "GIT_CONFIG_NOSYSTEM": "1"}
    completed = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    return completed.returncode, completed.stdout.decode("utf-8", "replace")


def _print_step(console: Console, number: int, text: str) -> None:
    console.print(Text(f"\n{number}. {text}", style="bold"), soft_wrap=True)


def _print_dim(console: Console, text: str) -> None:
    console.print(Text(text, style="dim"))


def _print_output(console: Console, output: str) -> None:
    for line in abbreviate_output(output, limit=20):
        console.print(Text(f"  │ {line}", style="dim"))


def _print_log(command_output: CommandOutput, log: Path) -> None:
    if log.is_file():
        for line in split_lines(sanitize(log.read_text("utf-8", "replace")))[-20:]:
            command_output.print_note(f"  {line}", "dim")
