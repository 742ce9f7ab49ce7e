"""The files of the page for the browser: each has the digest of its content in its URL, so it is cached for good."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.errors import NotFound

STATIC_PREFIX = "/ui/static"
_MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "webmanifest": "application/manifest+json",
}
_DIGEST_LENGTH = 16
_BUNDLES = {"htmx.js": ("vendor/htmx.min.js", "vendor/hx-csp.min.js", "vendor/hx-sse.min.js")}
"""htmx 4.0.1 begins in a task of its own after its script ran. An extension in another file may come after that, and
is then without effect on the page: nothing is followed, no nonce is checked. So they are one file."""


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file as it is sent."""

    content: bytes
    media_type: str
    digest: str


class StaticFiles:
    """The files below `static/`, read at the first use and held in memory."""

    @cached_property
    def _files(self) -> dict[str, StaticFile]:
        found: dict[str, StaticFile] = {}
        _collect(resources.files("steadyhand.web") / "static", "", found)
        for name, parts in _BUNDLES.items():
            found[name] = _static_file(b"\n;".join(found[part].content for part in parts), _MEDIA_TYPES["js"])
        return found

    def url(self, name: str) -> str:
        """Return the URL of a file; raise `KeyError` for an unknown one."""
        return f"{STATIC_PREFIX}/{self._files[name].digest}/{name}"

    async def send(self, request: Request) -> Response:
        """Send a file. One of an earlier version has another digest: it is 404, and not cached."""
        file = self._files.get(request.path_params["name"])
        if file is None or file.digest != request.path_params["digest"]:
            raise NotFound("There is no such file.")
        headers = {"cache-control": "public, max-age=31536000, immutable"}
        return Response(file.content, 200, headers, file.media_type)


def _collect(folder: Traversable, prefix: str, found: dict[str, StaticFile]) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            _collect(entry, f"{prefix}{entry.name}/", found)
            continue
        media_type = _MEDIA_TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None:
            found[prefix + entry.name] = _static_file(entry.read_bytes(), media_type)


def _static_file(content: bytes, media_type: str) -> StaticFile:
    return StaticFile(content, media_type, hashlib.sha256(content).hexdigest()[:_DIGEST_LENGTH])
