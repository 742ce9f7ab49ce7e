"""The place where `steadyhand agents install` works: a sandbox that reaches the registries alone, or none."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from steadyhand.config.settings import Settings
from steadyhand.errors import ConfigError
from steadyhand.gateway.egress.listed_hosts import ListedHosts
from steadyhand.runner.packages.installer import InstallPlace
from steadyhand.runner.process.sandbox_exec import ProcessSandboxExec
from steadyhand.sandbox.sandbox import PROXY_ENV, BwrapSandbox
from steadyhand.serve.isolation import choose_level
from steadyhand.serve.runner_setup import agent_uid_base, find_agent_cli
from steadyhand.text_lines import split_lines
from steadyhand.workspace.local_exec import LocalExec

_HINT = "To run npm and pip as this user, with all that it may do, give --without-sandbox."
_PROXY_NAMES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY")
_NO_EXCEPTION = {"no_proxy": "", "NO_PROXY": ""}


@asynccontextmanager
async def open_install_place(settings: Settings, *, without_sandbox: bool) -> AsyncIterator[InstallPlace]:
    """Yield the place for the length of the block. Raise `ConfigError` if this machine has no sandbox."""
    if without_sandbox:
        proxies = {name: os.environ[name] for name in _PROXY_NAMES if name in os.environ}
        yield InstallPlace(LocalExec(), lambda checkout: checkout.host_paths, False, proxy_env=proxies)
        return
    etc_in = _make_folder(settings.data_dir)
    try:
        sandbox = await _find_sandbox(settings, etc_in)
        hosts = ListedHosts()
        uid = agent_uid_base(settings)
        yield InstallPlace(
            ProcessSandboxExec(sandbox, hosts),
            sandbox.agent_paths,
            sandboxed=True,
            uid=None if uid is None else uid - 1,  # no agent has it
            refused_hosts=lambda: hosts.refused,
            proxy_env=_proxy_env(),
        )
    finally:
        await asyncio.to_thread(shutil.rmtree, etc_in, ignore_errors=True)


def _make_folder(data_dir: Path) -> Path:
    """Create a folder of its own for the `/etc` of the sandbox: a running service has another one."""
    data_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="install-", dir=data_dir))
    folder.chmod(0o711)
    return folder


async def _find_sandbox(settings: Settings, etc_in: Path) -> BwrapSandbox:
    """Return the sandbox of this machine. Raise `ConfigError` if it has none that can reach a host."""
    try:
        level = await choose_level(settings, find_agent_cli(settings), etc_in=etc_in)
    except ConfigError as error:
        reason = split_lines(error.detail)[0]
        raise ConfigError(f"Packages cannot be installed in a sandbox here: {reason}\n{_HINT}") from error
    sandbox = level.sandbox
    if not isinstance(sandbox, BwrapSandbox):
        raise ConfigError(f"Packages are installed in a sandbox, and isolation is 'none' here.\n{_HINT}")
    if not sandbox.egress_network:
        raise ConfigError(f"A sandbox on this machine reaches no host.\n{_HINT}")
    return sandbox


def _proxy_env() -> dict[str, str]:
    """Return the variables by which npm and pip find the proxy; npm's own configuration may name another one."""
    proxy = PROXY_ENV["https_proxy"]
    npm = {"npm_config_proxy": proxy, "npm_config_https_proxy": proxy, "npm_config_noproxy": ""}
    return {**PROXY_ENV, **_NO_EXCEPTION, **npm, "PIP_PROXY": proxy}
