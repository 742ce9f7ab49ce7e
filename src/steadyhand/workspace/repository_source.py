"""The source of a repository: its address, and how git reaches it with the service's credentials."""

import base64
import itertools
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from steadyhand.errors import WorkspaceError
from steadyhand.workspace.git import GitSettings, scrub

_SCHEMES = frozenset({"http", "https", "ssh", "git"})
_SCP_LIKE = re.compile(r"(?:[\w.-]+@)?[\w.-]+:(?!:)[^\s]+")
# Commands of a repository's own configuration that upload-pack and receive-pack could run.
_REMOTE_SIDE_CONFIG = (
    "safe.directory=*",
    f"core.hooksPath={os.devnull}",
    "core.fsmonitor=false",
    "core.alternateRefsCommand=true",  # a command that names none; it cannot be unset
    "receive.denyCurrentBranch=refuse",  # to bring a work tree up to date runs its filters
    "receive.autoGC=false",
)

# All imports come first: the dropped uid may not be able to read this Python's library.
_DROP_AND_EXEC = (
    "import os,sys,warnings;u,g=int(sys.argv[1]),int(sys.argv[2]);os.chdir('/');"
    "os.setgroups([]);os.setresgid(g,g,g);os.setresuid(u,u,u);os.execvp(sys.argv[3],sys.argv[3:])"
)


@dataclass(frozen=True, slots=True)
class RepositorySource:
    """The source of a repository: `url` for git, without a password; `folder` if it is local."""

    url: str
    folder: Path | None = None
    authorization: str | None = None
    """The header with the password of the URL; other users could read it in a URL on a command line."""

    @property
    def display_name(self) -> str:
        """The source for error texts, without paths of this machine."""
        return self.folder.name if self.folder is not None else scrub(self.url)


def parse_source(repository: str) -> RepositorySource:
    """Parse a workspace's `repository`: a path, a `file://` URL, or a URL with http, https, ssh or git.

    Raise `WorkspaceError` for anything else, such as transports that run a command.
    """
    if not repository or repository.startswith("-") or "\x00" in repository or "::" in repository:
        raise WorkspaceError("The repository is neither a path nor a URL.", retryable=False)
    parts = urlsplit(repository)
    if parts.scheme == "file":
        return RepositorySource(unquote(parts.path), Path(unquote(parts.path)))
    if "://" in repository:
        if parts.scheme not in _SCHEMES:
            raise WorkspaceError(f"The URL scheme '{parts.scheme}' is not supported.", retryable=False)
        if parts.password is None or parts.scheme not in {"http", "https"}:
            return RepositorySource(repository)
        pair = f"{unquote(parts.username or '')}:{unquote(parts.password)}"
        token = base64.b64encode(pair.encode()).decode()
        url_without_login = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        return RepositorySource(url_without_login, authorization=f"Authorization: Basic {token}")
    path = Path(repository)
    if not path.is_absolute() and not path.exists() and _SCP_LIKE.fullmatch(repository):
        return RepositorySource(repository)
    return RepositorySource(str(path.absolute()), path.absolute())


def serving_command(source: RepositorySource, verb: str) -> str | None:
    """Return the command that serves a local repository as its owner, without its code; `None` for a remote one.

    Anybody may have written its configuration and hooks, such as an agent that worked in place. Git does not pass
    the service's configuration to the other side, so it is repeated here.
    """
    folder = source.folder
    if folder is None:
        return None
    command = ["git", *itertools.chain.from_iterable(("-c", pair) for pair in _REMOTE_SIDE_CONFIG), verb]
    owner = repository_owner(folder)
    if owner is not None:
        command = [
            sys.executable,
            "-I",
            "-S",
            "-c",
            _DROP_AND_EXEC,
            str(owner[0]),
            str(owner[1]),
            *command,
        ]
    return shlex.join(command)


def repository_owner(folder: Path) -> tuple[int, int] | None:
    """Return the uid and gid that read a local repository; `None` if the service itself does."""
    try:
        info = (folder / ".git").lstat() if (folder / ".git").exists() else folder.stat()
    except OSError as error:
        raise WorkspaceError("the directory cannot be read", retryable=False) from error
    if os.geteuid() != 0 or info.st_uid == 0:
        return None
    return info.st_uid, info.st_gid


def remote_config(source: RepositorySource, settings: GitSettings) -> list[tuple[str, str]]:
    """Return the configuration of git for commands that reach the source."""
    pairs = [("http.lowSpeedLimit", "1000"), ("http.lowSpeedTime", "30"), ("fetch.unpackLimit", "1000")]
    if settings.credential_file is not None:
        pairs.append(("credential.helper", f"store --file={shlex.quote(str(settings.credential_file))}"))
    if settings.ca_file is not None:
        pairs.append(("http.sslCAInfo", str(settings.ca_file)))
    if source.authorization is not None:
        pairs.append((f"http.{source.url}.extraHeader", source.authorization))
    return pairs


def remote_environment(settings: GitSettings, folder: Path) -> dict[str, str]:
    """Return the environment of git for commands that reach a source; `folder` holds the known hosts."""
    ssh = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "StrictHostKeyChecking=accept-new"]
    ssh += ["-o", f"UserKnownHostsFile={folder / 'known_hosts'}"]
    if settings.ssh_key_file is not None:
        ssh += ["-o", "IdentitiesOnly=yes", "-i", str(settings.ssh_key_file)]
    return {"GIT_SSH_COMMAND": shlex.join(ssh)}
