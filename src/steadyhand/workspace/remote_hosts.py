"""The hosts from which content that a commit points to may be fetched: that of the workspace, and those it lists.

The addresses come from files of a repository, so they are hostile. Only https and ssh are taken, and http of this
machine's loopback address for a host that is named with its port.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from steadyhand.workspace.repository_source import RepositorySource

_LOOPBACK = "127.0.0.1"
_DEFAULT_PORTS = {"https": 443, "ssh": 22, "http": 80}
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SCP_LIKE = re.compile(r"(?:([^@/:]+)@)?([^@/:]+):([^:].*)")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\ud800-\udfff\\?#]|::")
_MAX_LENGTH = 2048


class UrlRefused(Exception):  # a verdict, which becomes a warning
    """An address is not fetched from; the text is the reason and, if there is one, the remedy."""


@dataclass(frozen=True, slots=True)
class RemoteUrl:
    """An address that may be fetched from, without a login but the user of ssh."""

    url: str
    scheme: str
    host: str
    port: int

    @property
    def origin(self) -> str:
        """The address of the host alone, as git matches settings by it."""
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}/"


class RemoteHosts:
    """The hosts of one workspace."""

    def __init__(self, source: RepositorySource, listed: Sequence[str] = ()) -> None:
        """Allow the repository's own host, and those that the operator lists."""
        self._source = source
        self._entries: set[tuple[str, str, int]] = set()
        try:
            own = None if source.folder is not None else parse_url(source.url)
        except UrlRefused:
            own = None
        self._own = own
        if own is not None:
            self._allow(own.host, own.port if own.port != _DEFAULT_PORTS[own.scheme] else None)
        for entry in listed:
            host, _, port = entry.partition(":")
            self._allow(host.lower(), int(port) if port else None)

    def _allow(self, host: str, port: int | None) -> None:
        for scheme in ("https", "ssh"):
            self._entries.add((scheme, host, port or _DEFAULT_PORTS[scheme]))
        if port is not None and host == _LOOPBACK:
            self._entries.add(("http", host, port))

    def check(self, url: str) -> RemoteUrl:
        """Return the address if its host is allowed. Raise `UrlRefused`."""
        remote = parse_url(url)
        if (remote.scheme, remote.host, remote.port) not in self._entries:
            name = (
                remote.host
                if remote.port == _DEFAULT_PORTS[remote.scheme]
                else f"{remote.host}:{remote.port}"
            )
            raise UrlRefused(f"its host {name} is not in the workspace's fetch_hosts")
        return remote

    def authorization_for(self, remote: RemoteUrl) -> str | None:
        """Return the header with the password of the workspace's URL, for its own scheme, host and port alone."""
        is_own = self._own is not None and self._own.origin == remote.origin
        return self._source.authorization if is_own else None


def parse_url(url: str) -> RemoteUrl:
    """Parse an absolute address. Raise `UrlRefused` for a path, another scheme and what could be read as an option."""
    if len(url) > _MAX_LENGTH or _FORBIDDEN.search(url) or url.startswith("-"):
        raise UrlRefused("its address is malformed")
    if "://" not in url:
        return _parse_scp_like(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UrlRefused("its address is malformed") from error
    scheme = parts.scheme
    if scheme not in _DEFAULT_PORTS or (scheme == "http" and (host != _LOOPBACK or port is None)):
        raise UrlRefused(f"only https and ssh are fetched from, not {scheme[:20]}")
    return _checked(scheme, parts.username, host, port or _DEFAULT_PORTS[scheme], parts.path)


def _parse_scp_like(url: str) -> RemoteUrl:
    match = _SCP_LIKE.fullmatch(url)
    if match is None or url.startswith(("/", ".")):
        raise UrlRefused("it is a path on this machine; only https and ssh are fetched from")
    path = match[3] if match[3].startswith("/") else f"/{match[3]}"
    return _checked("ssh", match[1], match[2], 22, path)


def _checked(scheme: str, user: str | None, host: str, port: int, path: str) -> RemoteUrl:
    is_named = _HOST.fullmatch(host) is not None and path.strip("/") and not path.startswith("/-")
    if not is_named or (user is not None and scheme == "ssh" and _USER.fullmatch(user) is None):
        raise UrlRefused("its address is malformed")
    login = f"{user}@" if user is not None and scheme == "ssh" else ""
    shown_port = "" if port == _DEFAULT_PORTS[scheme] else f":{port}"
    return RemoteUrl(f"{scheme}://{login}{host.lower()}{shown_port}{path}", scheme, host.lower(), port)


def resolve_relative(base: str, url: str) -> str:
    """Return a URL of `.gitmodules`; one that begins with `./` or `../` is relative to the repository's, as in git.

    Raise `UrlRefused` if it leads above the host.
    """
    if not url.startswith(("./", "../")):
        return url
    root, path = _split_root(base)
    parts = [part for part in path.split("/") if part]
    while url.startswith(("./", "../")):
        if url.startswith("../"):
            if not parts:
                raise UrlRefused("its address leads out of the repository's host")
            parts.pop()
        url = url.partition("/")[2]
    return root + "/".join([*parts, url])


def _split_root(base: str) -> tuple[str, str]:
    """Return the part of an address that no relative one changes, and its path."""
    scheme, separator, rest = base.partition("://")
    if separator:
        host, _, path = rest.partition("/")
        return f"{scheme}://{host}/", path
    if base.startswith("/"):
        return "/", base
    host, _, path = base.partition(":")
    return f"{host}:", path
