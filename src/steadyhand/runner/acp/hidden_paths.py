"""Hides files of a repository from an agent: empty ones are laid over them in the sandbox. Blocks."""

import stat
from collections.abc import Sequence
from pathlib import Path

from steadyhand.errors import SpawnError
from steadyhand.ports import BindMount, Checkout, Sandbox
from steadyhand.runner.acp.acp_agent import AcpAgent
from steadyhand.runner.acp.acp_launch import limits_of

_FILE, _FOLDER = "nothing", "nothing.d"


def hide_paths(agent: AcpAgent, checkout: Checkout, sandbox: Sandbox) -> Sequence[BindMount]:
    """Return the binds that hide paths of a repository from an agent, by the trust in it, as far as they are there.

    Raise `SpawnError` if something cannot be hidden: then the agent must not start.
    """
    directory = sandbox.agent_paths(checkout).directory
    # What the agent has written itself lies above the layer of the repository; to hide it would protect nobody.
    tree = checkout.directory if checkout.layers is None else checkout.layers.lower
    binds = []
    for name in (path for limits in limits_of(agent, checkout) for path in limits.hidden):
        try:
            mode = (tree / name).lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise SpawnError(f"{name} of the repository could not be read: {error.strerror}.") from error
        if sandbox.level == "none" or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            text = f"{name} of the repository cannot be kept from {agent.title} at this level of trust."
            raise SpawnError(text, retryable=False)
        empty = _empty_folder(checkout.paths.root) if stat.S_ISDIR(mode) else _empty_file(checkout.paths.root)
        binds.append(BindMount(empty, directory / name))
    return binds


def _empty_file(root: Path) -> Path:
    path = root / _FILE
    path.touch(mode=0o444)
    return path


def _empty_folder(root: Path) -> Path:
    path = root / _FOLDER
    path.mkdir(mode=0o555, exist_ok=True)
    return path
