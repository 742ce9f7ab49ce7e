"""Fetch files of Git LFS over https: the batch API of the repository's server, each file checked by its SHA-256.

The pointers and `.lfsconfig` come from a commit and are hostile; the answers of the server are checked as well. The
credentials go to allowed hosts alone and over no redirect. A download may be at another host, which gets only the
headers that the server names for it.
"""

import asyncio
import base64
import hashlib
import json
import os
import ssl
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import httpx2

from steadyhand.errors import WorkspaceError
from steadyhand.ports import ProgressRelay, report_phase
from steadyhand.workspace.external_content import LfsFile
from steadyhand.workspace.filesystem import PRIVATE, make_dir
from steadyhand.workspace.git import MIB, GitSettings
from steadyhand.workspace.git_progress import wait_for_fetch
from steadyhand.workspace.remote_hosts import RemoteHosts, RemoteUrl, UrlRefused, parse_url

MAX_FILES = 10_000
MAX_FILE_BYTES = 2048 * MIB
MAX_TOTAL_BYTES = 8192 * MIB
FETCH_SECONDS = 600.0
_BATCH_SIZE = 100
_MAX_ANSWER_BYTES = 8 * MIB
_MAX_REDIRECTS = 3
_MAX_HEADERS = 20
_DOWNLOADS = 4
_TIMEOUT = httpx2.Timeout(30.0, connect=15.0)
_MEDIA_TYPE = "application/vnd.git-lfs+json"
_IDENTITY = {"accept-encoding": "identity"}
_LOOPBACK = "127.0.0.1"


def endpoint_of(hosts: RemoteHosts, repository: str, configured: str | None) -> RemoteUrl:
    """Return the address of the LFS server. Raise `UrlRefused`.

    It is that of `.lfsconfig` if it has one, else the repository's with `info/lfs`; for ssh, https at the same host.
    """
    if configured is not None:
        remote = hosts.check(configured)
        if remote.scheme == "ssh":
            raise UrlRefused("only https is used for Git LFS, not ssh")
        return remote
    remote = hosts.check(repository)
    path = urlsplit(remote.url).path.rstrip("/")
    path = path if path.endswith(".git") else f"{path}.git"
    if remote.scheme == "ssh":
        return hosts.check(f"https://{remote.host}{path}/info/lfs")
    return hosts.check(f"{remote.origin.rstrip('/')}{path}/info/lfs")


@dataclass(frozen=True, slots=True)
class _Download:
    file: LfsFile
    href: str
    headers: Mapping[str, str]


class LfsStore:
    """The files of Git LFS that were fetched, by their SHA-256, in `folder`."""

    def __init__(self, folder: Path, settings: GitSettings) -> None:
        """Keep the settings; nothing is created before the first fetch."""
        self._folder = folder
        self._settings = settings
        self._lock = asyncio.Lock()
        self._relay = ProgressRelay()
        self._missing_bytes = self._fetched_bytes = 0

    def path_of(self, oid: str) -> Path:
        """Return the path of a file's content."""
        return self._folder / oid[:2] / oid

    async def fetch(self, files: Sequence[LfsFile], endpoint: RemoteUrl, authorization: str | None) -> None:
        """Fetch the files that are not there yet. Raise `WorkspaceError`.

        `authorization` is the header of the workspace's own password, if it holds for this endpoint.
        """
        _check_bounds(files)
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                await wait_for_fetch(self._lock, self._relay)
                try:
                    await self._fetch_in_turn(files, endpoint, authorization)
                finally:
                    self._lock.release()
        except TimeoutError as error:
            raise WorkspaceError(f"it took longer than {FETCH_SECONDS:g} s") from error
        except httpx2.HTTPError as error:
            raise WorkspaceError(f"{endpoint.host} cannot be reached ({type(error).__name__})") from error
        except OSError as error:
            raise WorkspaceError(f"the files could not be stored: {error.strerror}") from error

    async def _fetch_in_turn(
        self, files: Sequence[LfsFile], endpoint: RemoteUrl, authorization: str | None
    ) -> None:
        missing = {each.oid: each for each in files if not self.path_of(each.oid).is_file()}
        if not missing:
            return
        await report_phase("fetching")
        self._missing_bytes, self._fetched_bytes = sum(each.size for each in missing.values()), 0
        await self._fetch_missing(list(missing.values()), endpoint, authorization)

    def _count_fetched(self, size: int) -> None:
        """Count bytes that came, and report the part of the fetch that is done."""
        self._fetched_bytes += size
        percent = 100 * self._fetched_bytes // max(1, self._missing_bytes)
        self._relay.report(f"files of Git LFS {min(100, percent)} %")

    async def _fetch_missing(
        self, files: Sequence[LfsFile], endpoint: RemoteUrl, authorization: str | None
    ) -> None:
        header = authorization or await asyncio.to_thread(self.stored_login, endpoint)
        login = {} if header is None else {"authorization": header.partition(": ")[2]}
        async with httpx2.AsyncClient(
            timeout=_TIMEOUT, verify=self._tls(), trust_env=False, follow_redirects=False
        ) as client:
            for start in range(0, len(files), _BATCH_SIZE):
                downloads = await _request_batch(client, files[start : start + _BATCH_SIZE], endpoint, login)
                queue = iter(downloads)
                try:
                    async with asyncio.TaskGroup() as group:
                        for _ in range(_DOWNLOADS):
                            group.create_task(self._download_each(client, queue, endpoint, login))
                except ExceptionGroup as errors:
                    raise errors.exceptions[0] from errors

    def _tls(self) -> ssl.SSLContext:
        ca_file = self._settings.ca_file
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))

    def stored_login(self, endpoint: RemoteUrl) -> str | None:
        """Return the header of the service's credential for this host, from the file of `git credential-store`."""
        if self._settings.credential_file is None:
            return None
        with suppress(OSError, ValueError):
            for line in self._settings.credential_file.read_text("utf-8").split("\n"):
                parts = urlsplit(line.strip())
                port = parts.port or (443 if parts.scheme == "https" else 80)
                if (parts.scheme, parts.hostname, port) == (endpoint.scheme, endpoint.host, endpoint.port):
                    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
                    return f"Authorization: Basic {base64.b64encode(pair.encode()).decode()}"
        return None

    async def _download_each(
        self, client: httpx2.AsyncClient, queue: Any, endpoint: RemoteUrl, login: Mapping[str, str]
    ) -> None:
        for download in queue:
            headers = {**_IDENTITY, **download.headers}
            if not download.headers and _origin(download.href) == _origin(endpoint.url):
                headers |= login
            await self._download(client, download, headers, endpoint)

    async def _download(
        self, client: httpx2.AsyncClient, download: _Download, headers: Mapping[str, str], endpoint: RemoteUrl
    ) -> None:
        href = download.href
        for _ in range(_MAX_REDIRECTS + 1):
            _check_download_url(href, endpoint)
            async with client.stream("GET", href, headers=dict(headers)) as response:
                if response.is_redirect:
                    href, headers = urljoin(href, response.headers.get("location", "")), _IDENTITY
                    continue
                if response.status_code != httpx2.codes.OK:
                    raise WorkspaceError(
                        f"{urlsplit(href).hostname} answered {response.status_code} for {download.file.oid[:12]}",
                        retryable=response.status_code >= 500,  # noqa: PLR2004
                    )
                await self._store(download.file, response)
                return
        raise WorkspaceError(f"{download.file.oid[:12]} is redirected too often", retryable=False)

    async def _store(self, file: LfsFile, response: httpx2.Response) -> None:
        target = self.path_of(file.oid)
        for folder in (self._folder.parent, self._folder, target.parent):
            make_dir(folder, PRIVATE)
        handle, name = tempfile.mkstemp(prefix=".part-", dir=self._folder)
        try:
            digest, size = hashlib.sha256(), 0
            with os.fdopen(handle, "wb") as part:
                async for chunk in response.aiter_raw(MIB):
                    size += len(chunk)
                    if size > file.size:
                        break
                    digest.update(chunk)
                    self._count_fetched(len(chunk))
                    await asyncio.to_thread(part.write, chunk)
            if size != file.size or digest.hexdigest() != file.oid:
                raise WorkspaceError(
                    f"the content of {file.oid[:12]} is not what its pointer says", retryable=False
                )
            await asyncio.to_thread(_keep, Path(name), target)
        finally:
            await asyncio.to_thread(Path(name).unlink, missing_ok=True)


def _keep(part: Path, target: Path) -> None:
    part.chmod(0o644)
    part.rename(target)


def _check_bounds(files: Sequence[LfsFile]) -> None:
    if len(files) > MAX_FILES:
        raise WorkspaceError(f"there are {len(files)}, and at most {MAX_FILES} are fetched", retryable=False)
    largest = max((each.size for each in files), default=0)
    if largest > MAX_FILE_BYTES or sum(each.size for each in files) > MAX_TOTAL_BYTES:
        raise WorkspaceError(
            f"one has more than {MAX_FILE_BYTES // MIB} MiB, or all have more than {MAX_TOTAL_BYTES // MIB} MiB",
            retryable=False,
        )


async def _request_batch(
    client: httpx2.AsyncClient, files: Sequence[LfsFile], endpoint: RemoteUrl, login: Mapping[str, str]
) -> Sequence[_Download]:
    objects = [{"oid": each.oid, "size": each.size} for each in files]
    body = {"operation": "download", "transfers": ["basic"], "objects": objects, "hash_algo": "sha256"}
    headers = {"accept": _MEDIA_TYPE, "content-type": _MEDIA_TYPE, **login}
    url = f"{endpoint.url.rstrip('/')}/objects/batch"
    async with client.stream("POST", url, content=json.dumps(body), headers=headers) as response:
        if response.status_code != httpx2.codes.OK:
            raise WorkspaceError(
                f"{endpoint.host} answered {response.status_code}",
                retryable=response.status_code >= 500,  # noqa: PLR2004
            )
        answer = b""
        async for chunk in response.aiter_bytes():
            answer += chunk
            if len(answer) > _MAX_ANSWER_BYTES:
                raise WorkspaceError(f"the answer of {endpoint.host} is too long", retryable=False)
    return _parse_batch(answer, {each.oid: each for each in files}, endpoint)


def _parse_batch(answer: bytes, files: Mapping[str, LfsFile], endpoint: RemoteUrl) -> Sequence[_Download]:
    malformed = WorkspaceError(f"the answer of {endpoint.host} is malformed", retryable=False)
    try:
        entries = json.loads(answer)["objects"]
        found = {}
        for entry in entries:
            file = files.get(entry["oid"])
            if file is None or "actions" not in entry:
                continue
            action = entry["actions"]["download"]
            headers = action.get("header") or {}
            if len(headers) > _MAX_HEADERS or not all(isinstance(each, str) for each in headers.values()):
                raise malformed
            found[file.oid] = _Download(file, str(action["href"]), {str(k): v for k, v in headers.items()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise malformed from error
    missing = [oid[:12] for oid in files if oid not in found]
    if missing:
        raise WorkspaceError(f"{endpoint.host} does not have {', '.join(missing[:3])}", retryable=False)
    return list(found.values())


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _check_download_url(href: str, endpoint: RemoteUrl) -> None:
    """Raise `WorkspaceError` unless an address is one of https; http is for this machine, and a server on it, alone."""
    try:
        parts = urlsplit(href)
        is_plain = parts.scheme == "http" and parts.hostname == _LOOPBACK and endpoint.scheme == "http"
        checked = href.partition("?")[0]
        if parts.scheme == "https" or is_plain:
            parse_url(checked)
            return
    except (UrlRefused, ValueError) as error:
        raise WorkspaceError("the server names an address that is malformed", retryable=False) from error
    raise WorkspaceError("the server names an address that is not of https", retryable=False)
