"""Programs that take more than they may: a fork bomb, a memory hog and a flood, each bounded by itself.

At most 512 MB of memory, 128 processes and 20 s. Each is made only after a small probe, first in line to be killed, has
shown that its limit is there.
"""

from steadyhand.testing.service import Service
from steadyhand.testing.shell import python_command, shell_prompt

_PROCESS_LIMIT = 60
OOM_KILL_FIRST = "echo 1000 > /proc/self/oom_score_adj; "
SMALL_LIMITS_CONFIG = f"""\
[agents.small]
workspace = "scratch"
memory = "200M"
processes = {_PROCESS_LIMIT}
disk = "64M"
"""
"""Settings with an agent of small limits, which the programs go beyond."""
_ALLOCATE_MEMORY = "held = bytearray({amount} << 20); print('HELD', len(held))"
_COUNT_FORKS = """
import os, time
made = 0
try:
    for _ in range({amount}):
        if os.fork() == 0:
            time.sleep(8)
            os._exit(0)
        made += 1
except OSError:
    pass
print(made)
"""
_FORK_BOMB = """
import os, time
end = time.monotonic() + 5
for _ in range(6):
    try:
        os.fork()
    except OSError:
        pass
while time.monotonic() < end:
    try:
        if os.fork() == 0:
            time.sleep(0.2)
            os._exit(0)
    except OSError:
        time.sleep(0.05)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except OSError:
        pass
print("over")
"""


class LimitMissingError(Exception):
    """A probe was not stopped, so no attack is made."""


def memory_hog(service: Service) -> str:
    """Return a shell command that asks for more than twice the memory it may have."""
    probe = service.run_job(
        shell_prompt(OOM_KILL_FIRST + python_command(_ALLOCATE_MEMORY.format(amount=260)) + "; echo $?"),
        agent="small",
    )
    if not str(probe["answer"]).endswith("137"):
        raise LimitMissingError(f"the limit on memory does not hold: {probe['answer']}")
    return OOM_KILL_FIRST + python_command(_ALLOCATE_MEMORY.format(amount=480))


def fork_bomb(service: Service) -> str:
    """Return a shell command that forks for five seconds as fast as it may."""
    probe = service.run_job(
        shell_prompt(OOM_KILL_FIRST + python_command(_COUNT_FORKS.format(amount=_PROCESS_LIMIT + 10))),
        agent="small",
    )
    if not 0 < int(probe["answer"]) < _PROCESS_LIMIT:
        raise LimitMissingError(f"the limit on processes does not hold: {probe['answer']}")
    return OOM_KILL_FIRST + python_command(_FORK_BOMB) + " | tail -1"
