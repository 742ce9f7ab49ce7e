"""A bucket of an object store, by URL: `file`, `s3`, `gs` or `az`. It needs the extra `objects`."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from steadyhand.errors import ConfigError, NotFound, StoreError, StoreUnavailable

SCHEMES = ("file", "s3", "gs", "az")
SECONDS = 600.0
"""The longest time for one file."""
_ATTEMPT_SECONDS = 60
_CONNECT_SECONDS = 5
_RETRY_SECONDS = 10
_MAX_RETRIES = 4
_PART_BYTES = 8 * 1024 * 1024


class ObjectBucket:
    """The objects below a URL."""

    def __init__(self, url: str, options: Mapping[str, str] | None = None) -> None:
        """Open it; nothing is asked of the object store yet. Raise `ConfigError` for a URL that cannot be used.

        `options` are those of the object store, such as `aws_endpoint`. Credentials can come by the environment.
        """
        scheme = urlsplit(url).scheme
        if scheme not in SCHEMES:
            raise ConfigError(
                f"`artifacts.url` begins with one of {', '.join(f'{each}://' for each in SCHEMES)}."
            )
        try:
            import obstore  # noqa: PLC0415  # it needs an extra
            from obstore.store import from_url  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                "`artifacts.url` needs the package obstore: pip install 'steadyhand[objects]'."
            ) from error
        self._obstore: Any = obstore
        arguments: dict[str, Any] = {"mkdir": True, "automatic_cleanup": True}
        if scheme != "file":
            arguments = {
                "config": dict(options or {}),
                "client_options": {
                    "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
                    "timeout": timedelta(seconds=_ATTEMPT_SECONDS),
                    "allow_http": url_of_endpoint(options).startswith("http://"),
                },
                "retry_config": {
                    "max_retries": _MAX_RETRIES,
                    "retry_timeout": timedelta(seconds=_RETRY_SECONDS),
                },
            }
        try:
            self._bucket: Any = from_url(url, **arguments)
        except Exception as error:  # the library has an error of its own for each cause
            raise ConfigError(f"`artifacts.url` cannot be used: {_first_line(error)}") from error

    async def put(self, key: str, path: Path) -> None:
        """Store a file as an object, in parts if it is large. Raise `StoreUnavailable`, also without the file."""
        with _translated():
            async with asyncio.timeout(SECONDS):
                await self._obstore.put_async(
                    self._bucket, key, path, chunk_size=_PART_BYTES, max_concurrency=2
                )

    async def get(self, key: str) -> AsyncIterator[bytes]:
        """Return the content of an object in pieces. Raise `NotFound`, `StoreUnavailable`."""
        with _translated(), _missing_object():
            async with asyncio.timeout(_ATTEMPT_SECONDS):
                found = await self._obstore.get_async(self._bucket, key)
        pieces = aiter(found.stream(min_chunk_size=_PART_BYTES))
        while True:
            with _translated(), _missing_object():
                async with asyncio.timeout(_ATTEMPT_SECONDS):
                    data = await anext(pieces, None)
            if data is None:
                return
            yield bytes(data)

    async def delete(self, key: str) -> None:
        """Delete an object; one that is not there is no error. Raise `StoreUnavailable`."""
        with _translated():
            try:
                async with asyncio.timeout(SECONDS):
                    await self._obstore.delete_async(self._bucket, key)
            except FileNotFoundError:
                return


def url_of_endpoint(options: Mapping[str, str] | None) -> str:
    """Return the address of the object store that the options name, or an empty text."""
    named = [value for name, value in (options or {}).items() if name.lower().endswith("endpoint")]
    return named[0] if named else ""


@contextmanager
def _translated() -> Iterator[None]:
    """Raise the errors of the library as those of a store."""
    try:
        yield
    except (StoreError, NotFound, GeneratorExit, asyncio.CancelledError):
        raise
    except TimeoutError as error:
        raise StoreUnavailable("The object store does not answer.") from error
    except Exception as error:  # each cause has an error of its own, and nothing else can be done about any
        raise StoreUnavailable(f"The object store fails: {_first_line(error)}") from error


@contextmanager
def _missing_object() -> Iterator[None]:
    """Raise `NotFound` if an object is not there. Of a `put` the same error is about the file on this machine."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound("The object is not there.") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
