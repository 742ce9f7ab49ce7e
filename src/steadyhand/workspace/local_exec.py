"""Run the program of the sandbox without a sandbox, as the agent's user: for isolation `none`."""

from collections.abc import Callable, Mapping, Sequence

from steadyhand.agents import Agent
from steadyhand.errors import SpawnError, WorkspaceError
from steadyhand.ports import Checkout, ExecResult
from steadyhand.workspace.git import run_process


class LocalExec:
    """Runs commands as the user of a checkout; implements `ports.SandboxExec`. No process of them outlives it."""

    async def run(
        self,
        argv: Sequence[str],
        checkout: Checkout,
        agent: Agent,  # noqa: ARG002  # the port's signature
        *,
        env: Mapping[str, str],
        stdin: bytes = b"",
        timeout_seconds: float,
        max_output: int,
        on_stdout: Callable[[bytes], float] | None = None,
        on_stderr: Callable[[bytes], None] | None = None,
    ) -> ExecResult:
        """Run a command in the checkout's directory; see the port."""
        try:
            result = await run_process(
                argv, cwd=checkout.directory, env=env, user=checkout.uid, stdin=stdin,
                seconds=timeout_seconds, limit=max_output, on_stdout=on_stdout, on_stderr=on_stderr,
            )  # fmt: skip
        except TimeoutError:
            return ExecResult(None, b"", b"")
        except OSError as error:
            raise SpawnError(f"{argv[0]}: {error.strerror}") from error
        except WorkspaceError as error:
            raise SpawnError(error.detail) from error
        code = None if result.overflowed else result.code
        return ExecResult(code, result.stdout, result.stderr)
