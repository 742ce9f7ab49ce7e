"""The process in which apprise runs: started for the first notification, ended by itself after a while without one.

apprise blocks, follows its own rules about connections and takes 50 MB. In a process of its own every connection is
checked by the guard, whatever opened it, a call that hangs can be ended, and the service stays small.
"""

import asyncio
import contextlib
import json
import os
import sys
from typing import Any

SEND_SECONDS = 30.0
"""The time for one notification, the start of the process included."""
KILL_SECONDS = 5.0
MAX_ANSWER_BYTES = 64 * 1024
_PASSED_VARIABLES = ("PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "TZDIR")
"""No variable names a proxy: the guard could not see what lies behind it."""


class AppriseProcess:
    """One child process; a request at a time."""

    def __init__(self, seconds: float = SEND_SECONDS) -> None:
        self._seconds = seconds
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def request(self, values: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the answer, or `error` if there is none in time; the process is ended then."""
        async with self._lock:
            answer: Any = None
            try:
                async with asyncio.timeout(self._seconds):
                    answer = await self._exchange(json.dumps(values).encode() + b"\n")
            except TimeoutError:
                answer = {"error": f"The service gave no answer within {self._seconds:g} s."}
            except (OSError, ValueError, asyncio.LimitOverrunError):
                answer = {"error": "The process of apprise ended."}
            finally:
                if not isinstance(answer, dict) or "ok" not in answer:
                    await self._end()
            return answer if isinstance(answer, dict) else {"error": "The process of apprise ended."}

    async def close(self) -> None:
        """End the process."""
        async with self._lock:
            await self._end()

    async def _exchange(self, line: bytes) -> Any:
        # One that ended by itself after its idle time may still be there: then it is asked again in a new one.
        for _ in range(2):
            process = await self._start()
            if process.stdin is None or process.stdout is None:
                raise OSError("no pipe")
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(line)
                await process.stdin.drain()
                answer = await process.stdout.readline()
                if answer:
                    return json.loads(answer)
            await self._end()
        raise OSError("no answer")

    async def _start(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        environment = {name: os.environ[name] for name in _PASSED_VARIABLES if name in os.environ}
        if "SSL_CERT_FILE" in environment:  # `requests` reads the other name alone
            environment.setdefault("REQUESTS_CA_BUNDLE", environment["SSL_CERT_FILE"])
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-m", "steadyhand.notify.apprise_child",
            env={**environment, "LANG": "C.UTF-8", "HOME": "/nonexistent", "NO_PROXY": "*"},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True, limit=MAX_ANSWER_BYTES,
        )  # fmt: skip
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_SECONDS):
                await process.wait()
