"""The systemd unit of a service on this machine.

Only what the sandbox of agents can bear is hardened. A new `/proc` in a namespace needs one of which nothing is
masked: so no `ProtectProc`, `ProcSubset`, `ProtectKernelTunables` and `ProtectKernelLogs`. Each sandbox has namespaces
and a host name of its own: so no `RestrictNamespaces`, `PrivateUsers` and `ProtectHostname`. Agents compile and trace
programs: so no filter of system calls beside the sandbox's own, and no `MemoryDenyWriteExecute`.
"""

import math
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steadyhand.errors import ConfigError

UNIT_NAME = "steadyhand.service"
Role = Literal["serve", "worker"]
_VERSION_SECONDS = 10
_STOP_SECONDS = 60
"""The time for the end of a stop, after running jobs had theirs: harvests, and the last writes."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNIT = """\
# Made by `steadyhand init --systemd`.
[Unit]
Description=Steadyhand, a service that runs coding agents
Documentation=man:steadyhand(1)
Wants=network-online.target
After=network-online.target
RequiresMountsFor={mounts}

[Service]
# The service tells when it answers and when it stops.
Type=notify
NotifyAccess=main
{user}WorkingDirectory={directory}
ExecStart={command}
# The service starts the next one, which takes its place: no request is refused.
ExecReload=/bin/kill -USR2 $MAINPID
# The credential of the model, as NAME=value; the file has mode 0600.
{no_reattach}EnvironmentFile=-{environment}
Restart=on-failure
RestartSec=5
# A wrong setting (2) is not tried again.
RestartPreventExitStatus=2

# The first start migrates the database, which may take minutes.
TimeoutStartSec=10min
{kill_mode}TimeoutStopSec={stop_seconds}
# An agent that has no memory left must not end the service.
OOMPolicy=continue
# Each agent has a group of its own, with limits.
Delegate=memory pids
{subgroup}TasksMax=infinity
LimitNOFILE=65536

NoNewPrivileges=yes
{capabilities}ProtectSystem=strict
ReadWritePaths={writable}
# A workspace that agents change in place needs a ReadWritePaths= of its own.
ProtectHome=read-only
PrivateTmp=yes
ProtectKernelModules=yes
RestrictRealtime=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""
_MIXED_KILL = "# SIGTERM to the service alone: running jobs may end, then all is stopped.\nKillMode=mixed\n"
_PROCESS_KILL = "# Runs outlive a crash of the service; the next one takes them up.\nKillMode=process\n"
_SUBGROUP_VERSION = 254
"""The systemd that knows `DelegateSubgroup=`. An earlier one cannot start a service in a group in which runs go on."""
_NO_REATTACH = (
    f"# Runs may outlive the service with systemd {_SUBGROUP_VERSION} or newer: make the unit anew\n"
    "# there.\n"
    "Environment=STEADYHAND_SERVICE__REATTACH_SECONDS=0\n"
)
_SUBGROUP = (
    "# The service starts beside the groups of runs that go on.\nDelegateSubgroup=steadyhand-service\n"
)
_ROOT_CAPABILITIES = (
    "# Root makes the namespaces, users and mounts of agents.\n"
    "CapabilityBoundingSet=~CAP_BPF CAP_MAC_ADMIN CAP_MAC_OVERRIDE CAP_PERFMON\n"
    "CapabilityBoundingSet=~CAP_SYSLOG CAP_SYS_BOOT CAP_SYS_MODULE CAP_SYS_RAWIO\n"
    "CapabilityBoundingSet=~CAP_SYS_TIME CAP_WAKE_ALARM\n"
)
_USER_CAPABILITIES = "CapabilityBoundingSet=\n"


@dataclass(frozen=True, slots=True)
class Installation:
    """The paths of a service: its program, the directory of its configuration file, and its data."""

    command: Sequence[str]
    config_file: Path
    data_dir: Path
    user: str
    is_root: bool
    drain_seconds: float
    reattach_seconds: float = 0
    role: Role = "serve"
    systemd_version: int = _SUBGROUP_VERSION


def systemd_unit(installation: Installation) -> str:
    """Return the unit of a service. Raise `ConfigError` for a path that no unit can name."""
    directory = installation.config_file.parent
    program, *arguments = installation.command
    arguments += ["--config", str(installation.config_file), installation.role]
    if re.search(r"""["'\\]""", program):
        raise ConfigError(f"systemd takes no program with a quote or a backslash in its path: {program}")
    outlives = installation.reattach_seconds > 0 and installation.systemd_version >= _SUBGROUP_VERSION
    return _UNIT.format(
        mounts=_quoted(str(installation.data_dir)),
        user="" if installation.is_root else f"User={installation.user}\n",
        directory=_escaped(str(directory)),
        # systemd replaces variables in the arguments alone.
        command=" ".join([_quoted(program), *(_quoted(each.replace("$", "$$")) for each in arguments)]),
        environment=_escaped(str(directory / "steadyhand.env")),
        stop_seconds=math.ceil(installation.drain_seconds) + _STOP_SECONDS,
        kill_mode=_PROCESS_KILL if outlives else _MIXED_KILL,
        subgroup=_SUBGROUP if outlives else "",
        no_reattach=_NO_REATTACH if installation.reattach_seconds and not outlives else "",
        capabilities=_ROOT_CAPABILITIES if installation.is_root else _USER_CAPABILITIES,
        writable=_quoted(str(installation.data_dir)),
    )


def find_systemd_version() -> int:
    """Return the version of this machine's systemd; 0 if there is none."""
    try:
        told = subprocess.run(
            ["systemctl", "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.match(r"systemd (\d+)", told)
    return int(found[1]) if found else 0


def _escaped(path: str) -> str:
    """Return a path as the rest of a line."""
    if _CONTROL.search(path) or path != path.strip() or path.endswith("\\"):
        raise ConfigError(f"A systemd unit cannot name the path {path!r}.")
    return path.replace("%", "%%")


def _quoted(word: str) -> str:
    """Return a word of a list."""
    if re.fullmatch(r"[A-Za-z0-9_./:=+@,$-]+", word):
        return word
    escaped = _escaped(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
