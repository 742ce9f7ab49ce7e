"""The files that jobs leave in the database and in an object store; implements `ports.Artifacts`.

A file up to a size lies in the database, in pieces. A larger one is an object with a name that was never used before:
not every object store can put one only if it is not there.
"""

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from sqlalchemy import Connection

from steadyhand.errors import ArtifactTooLarge, NotFound, SteadyhandError, StoreError
from steadyhand.ports.artifacts import StoredArtifact
from steadyhand.store import artifact_rows
from steadyhand.store.artifact_rows import NewFile

CHUNK_BYTES = 512 * 1024
SMALL_BYTES = 1024 * 1024
"""Files of a run that are no larger together are stored by one transaction."""
REMOVED_AT_ONCE = 50
_READ_BYTES = 1 << 20
_DISCARD_SECONDS = 5.0

T = TypeVar("T")


class Objects(Protocol):
    """A bucket. Methods raise `StoreUnavailable`."""

    async def put(self, key: str, path: Path) -> None:
        """Store a file as an object."""
        ...

    def get(self, key: str) -> AsyncIterator[bytes]:
        """Return the content of an object in pieces; raise `NotFound` if it is not there."""
        ...

    async def delete(self, key: str) -> None:
        """Delete an object; one that is not there is no error."""
        ...


@dataclass(frozen=True, slots=True)
class MeasuredFile:
    """A file on this node that is to be stored."""

    name: str
    path: Path
    size: int
    digest: str


class _RunStatement(Protocol):
    """Runs a function of a connection: the writer in a transaction, a reader without."""

    def __call__(self, work: Callable[[Connection], T], /) -> Awaitable[T]: ...


class SharedArtifacts:
    """The files of jobs in the database up to `database_bytes`, and larger ones in `objects`."""

    def __init__(
        self,
        write: _RunStatement,
        read: _RunStatement,
        clock: Callable[[], datetime],
        *,
        database_bytes: int,
        objects: Objects | None = None,
    ) -> None:
        """Keep the settings. Without `objects`, larger files are refused."""
        self._write = write
        self._read = read
        self._clock = clock
        self._database_bytes = database_bytes
        self._objects = objects

    async def save(self, job_id: str, run: int, files: Mapping[str, Path | None]) -> None:
        """Store files of a run together; see `ports.Artifacts.save`."""
        removed = [name for name, path in files.items() if path is None]
        measured = await asyncio.to_thread(_measure_all, files)
        if sum(each.size for each in measured) <= min(SMALL_BYTES, self._database_bytes):
            await self._save_small(job_id, run, measured, removed)
            return
        stored = await self.list_stored(job_id)
        written: list[NewFile] = []
        unchanged: list[NewFile] = []
        try:
            for file in measured:
                old = stored.get(file.name)
                if old is not None and (old.size, old.digest) == (file.size, file.digest):
                    unchanged.append(NewFile(old.id, file.name))
                else:
                    await self._write_file(job_id, run, file, written)
            now = self._clock()
            await self._write(
                lambda at: artifact_rows.store_files(
                    at, job_id, run, [*written, *unchanged], removed=removed, now=now
                )
            )
        except (SteadyhandError, OSError, asyncio.CancelledError):
            # Else they would lie there for a day. If this fails too, they do.
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(_DISCARD_SECONDS):
                    await self._write(
                        lambda at: artifact_rows.discard_files(at, [file.id for file in written])
                    )
            raise

    async def _save_small(
        self, job_id: str, run: int, files: Sequence[MeasuredFile], removed: Collection[str]
    ) -> None:
        """Store small files in one transaction: most jobs leave no others, and their end waits for this."""
        contents = await asyncio.to_thread(lambda: [file.path.read_bytes() for file in files])
        now = self._clock()

        def write(at: Connection) -> None:
            stored = artifact_rows.list_stored(at, job_id)
            new: list[NewFile] = []
            for file, data in zip(files, contents, strict=True):
                old = stored.get(file.name)
                if old is not None and (old.size, old.digest) == (file.size, file.digest):
                    new.append(NewFile(old.id, file.name))
                    continue
                row = artifact_rows.begin_file(
                    at,
                    job_id,
                    run,
                    name=file.name,
                    size=file.size,
                    digest=file.digest,
                    object_key=None,
                    now=now,
                )
                if data:
                    artifact_rows.add_chunk(at, row, 0, data)
                new.append(NewFile(row, file.name))
            artifact_rows.store_files(at, job_id, run, new, removed=removed, now=now)

        await self._write(write)

    async def _write_file(self, job_id: str, run: int, file: MeasuredFile, written: list[NewFile]) -> None:
        """Write a file, and add it to `written` before its content."""
        object_key = self._object_key(job_id, file)
        now = self._clock()
        row = await self._write(
            lambda at: artifact_rows.begin_file(
                at,
                job_id,
                run,
                name=file.name,
                size=file.size,
                digest=file.digest,
                object_key=object_key,
                now=now,
            )
        )
        written.append(NewFile(row, file.name))
        if object_key is not None:
            assert self._objects is not None  # noqa: S101  # it has the name
            await self._objects.put(object_key, file.path)
            return
        with await asyncio.to_thread(file.path.open, "rb") as source:
            number = 0
            while data := await asyncio.to_thread(source.read, CHUNK_BYTES):
                await self._write(partial(artifact_rows.add_chunk, file=row, number=number, data=data))
                number += 1

    def _object_key(self, job_id: str, file: MeasuredFile) -> str | None:
        """Return the name of a new object for a file, or None if it goes to the database."""
        if file.size <= self._database_bytes:
            return None
        if self._objects is None:
            raise ArtifactTooLarge(
                f"The {file.name} has {file.size} bytes; without `artifacts.url`, other nodes get files of at most"
                f" {self._database_bytes}.",
                name=file.name,
            )
        return f"jobs/{job_id}/{file.name}-{uuid.uuid4().hex}"

    async def list_stored(self, job_id: str) -> Mapping[str, StoredArtifact]:
        """Return the stored files of a job by name."""
        return await self._read(lambda at: artifact_rows.list_stored(at, job_id))

    async def load(self, artifact: StoredArtifact, target: Path) -> None:
        """Write the content of a file to `target`; see `ports.Artifacts.load`."""
        try:
            with await asyncio.to_thread(target.open, "xb") as file:
                await self._receive(artifact, file)
        except BaseException:  # also when cancelled: nobody has the half of a file to remove
            await asyncio.to_thread(target.unlink, missing_ok=True)
            raise

    async def _receive(self, artifact: StoredArtifact, file: BinaryIO) -> None:
        digest, size = hashlib.sha256(), 0
        async for data in self._content(artifact):
            size += len(data)
            if size > artifact.size:
                break
            digest.update(data)
            await asyncio.to_thread(file.write, data)
        if (size, digest.hexdigest()) != (artifact.size, artifact.digest):
            if not await self._read(lambda at: artifact_rows.is_stored(at, artifact.id)):
                raise NotFound(f"This job has another {artifact.name} now.")
            raise StoreError(f"The stored {artifact.name} is damaged: its digest differs.")

    async def _content(self, artifact: StoredArtifact) -> AsyncIterator[bytes]:
        if artifact.object_key is not None:
            if self._objects is None:
                raise StoreError(
                    f"The {artifact.name} is in an object store, and `artifacts.url` names none."
                )
            with contextlib.suppress(NotFound):  # the digest differs then
                async for data in self._objects.get(artifact.object_key):
                    yield data
            return
        number = 0
        while True:
            piece: bytes | None = await self._read(
                partial(artifact_rows.read_chunk, file=artifact.id, number=number)
            )
            if piece is None:
                return
            yield piece
            number += 1

    async def remove_unused(self) -> bool:
        """Remove some of the files that no job has any more: objects first, so that none is forgotten.

        Without a bucket in the configuration, rows with objects wait for one.
        """
        objects, now = self._objects, self._clock()
        unused = await self._read(
            lambda at: artifact_rows.list_unused(at, now, REMOVED_AT_ONCE, with_objects=objects is not None)
        )
        for file, object_key in unused:
            if object_key is not None and objects is not None:
                await objects.delete(object_key)
            await self._write(partial(artifact_rows.delete_files, files=[file]))
        return len(unused) == REMOVED_AT_ONCE

    async def remove_older(self, names: Collection[str], moment: datetime, spared: Collection[str]) -> None:
        """Remove the files of these names that were stored before `moment`."""
        await self._write(lambda at: artifact_rows.replace_older(at, names, moment, spared))


def _measure_all(files: Mapping[str, Path | None]) -> list[MeasuredFile]:
    return [_measure(name, path) for name, path in files.items() if path is not None]


def _measure(name: str, path: Path) -> MeasuredFile:
    """Return a file with its size and the SHA-256 of its content in hex; blocks."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
            size += len(data)
    return MeasuredFile(name, path, size, digest.hexdigest())
