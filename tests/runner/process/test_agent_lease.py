"""The lease of an agent: it ends when its service is frozen, and a renewal loses no message about its end."""

import asyncio
import socket
from collections.abc import Callable

from steadyhand.ports import Command
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec
from steadyhand.runner.process.supervisor_channel import SupervisorChannel, encode_frame, renew_leases
from steadyhand.testing.processes import pids_with_mark, wait_until_gone

Python = Callable[..., Command]


def test_an_agent_ends_when_its_lease_is_not_renewed_and_its_end_says_so(unruly: Python, mark: str) -> None:
    async def scenario() -> None:
        async with AgentProcess.start(LaunchSpec(unruly("daemon", "deaf", "stay"))) as process:
            async with asyncio.timeout(20):
                assert await process.stdout.readline() == b"ready\n"
            renew_leases(60)
            assert process.running
            renew_leases(0.1)
            async with asyncio.timeout(20):
                ended = await process.wait()
            assert (ended.lease_over, ended.unkillable) == (True, False)
            assert pids_with_mark(mark) == []

    asyncio.run(scenario())
    assert wait_until_gone(mark)


def test_a_renewal_to_a_supervisor_that_has_just_ended_loses_no_message_about_its_end() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        channel = SupervisorChannel()
        await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=ours)
        theirs.sendall(encode_frame({"started": 1, "means": "walk", "groups": []}))
        async with asyncio.timeout(20):
            await channel.started
        theirs.sendall(encode_frame({"exited": 0, "signal": None, "felt": {}}) + encode_frame({"gone": True}))
        theirs.close()
        channel.renew_lease(5)
        async with asyncio.timeout(20):
            assert (await channel.exited).code == 0
            assert await channel.cleaned_up

    asyncio.run(scenario())
