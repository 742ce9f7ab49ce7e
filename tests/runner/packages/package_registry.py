"""A registry of npm packages on loopback, which packs what it serves, and packages of the tests with their locks."""

import base64
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from steadyhand.runner.packages.package_list import Package


@dataclass
class ServedPackage:
    """One version of a package: its manifest and its tarball; `tarball_host` is another one than the registry's."""

    manifest: dict[str, Any]
    tarball: bytes
    tarball_host: str | None = None

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def integrity(self) -> str:
        return "sha512-" + base64.b64encode(hashlib.sha512(self.tarball).digest()).decode()

    def lock_entry(self) -> dict[str, Any]:
        kept = ("version", "bin", "dependencies", "optionalDependencies", "os", "cpu")
        entry = {name: self.manifest[name] for name in kept if name in self.manifest}
        scripts = {"hasInstallScript": True} if "scripts" in self.manifest else {}
        return {**entry, "integrity": self.integrity, **scripts}


def pack(
    name: str, version: str = "1.0.0", files: Mapping[str, str] | None = None, **fields: Any
) -> ServedPackage:
    """Pack files into a tarball, as npm does; those below `bin/` can be executed."""
    manifest = {"name": name, "version": version, **fields}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for path, text in {"package.json": json.dumps(manifest), **(files or {})}.items():
            info = tarfile.TarInfo(f"package/{path}")
            info.size, info.mode = len(text.encode()), 0o777 if path.startswith("bin/") else 0o666
            tar.addfile(info, io.BytesIO(text.encode()))
    return ServedPackage(manifest, packed.getvalue())


@dataclass
class PackageRegistry:
    """The registry. `hold` names a package whose tarball is begun and not ended until the client goes."""

    packages: dict[str, ServedPackage] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    hold: str | None = None

    def __post_init__(self) -> None:
        self.holding, self.client_gone = threading.Event(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def add(self, *packages: ServedPackage) -> None:
        self.packages |= {each.name: each for each in packages}

    def answer(self, path: str) -> bytes | None:
        name = unquote(path.split("?", maxsplit=1)[0]).strip("/")
        if name.endswith(".tgz"):
            package = self.packages.get(name.removesuffix(".tgz").removeprefix("files/"))
            return None if package is None else package.tarball
        package = self.packages.get(name)
        if package is None:
            return None
        host = package.tarball_host or self.url
        dist = {"tarball": f"{host}/files/{package.name}.tgz", "integrity": package.integrity}
        version = package.manifest["version"]
        versions = {version: {**package.manifest, "dist": dist}}
        return json.dumps(
            {"name": package.name, "dist-tags": {"latest": version}, "versions": versions}
        ).encode()


def _handler_of(registry: PackageRegistry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            registry.paths.append(self.path)
            registry.tokens.add(self.headers.get("authorization", ""))
            body = registry.answer(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("content-length", str(len(body or b"")))
            self.end_headers()
            if registry.hold is not None and self.path.endswith(f"{registry.hold}.tgz"):
                registry.holding.set()
                self.connection.settimeout(120)
                with suppress(ConnectionResetError):
                    assert self.connection.recv(1) == b""  # it ends with the connection
                registry.client_gone.set()
                return
            self.wfile.write(body or b"")

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    return Handler


def make_package(
    locks: Path, name: str, packages: Mapping[str, ServedPackage], *, program: str, needs_node: bool = False
) -> Package:
    """Write the lock of a package, whose tree has these at their paths, the first of them its own."""
    folder = locks / name
    folder.mkdir(parents=True)
    main = next(iter(packages.values()))
    root = {"dependencies": {main.name: main.manifest["version"]}}
    entries = {f"node_modules/{path}": each.lock_entry() for path, each in packages.items()}
    lock = {"lockfileVersion": 3, "requires": True, "packages": {"": root, **entries}}
    (folder / "package.json").write_text(json.dumps({"private": True, **root}))
    (folder / "package-lock.json").write_text(json.dumps(lock))
    return Package(name, f"node_modules/{program}", needs_node=needs_node, locks=locks)


def make_wheel(folder: Path, name: str, files: Mapping[str, str]) -> Path:
    """Write a wheel of version 1.0.0 with these files into a folder and return it; those in a `bin` can be executed."""
    wheel = folder / f"{name}-1.0.0-py3-none-any.whl"
    info = f"{name}-1.0.0.dist-info"
    described = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, *described, f"{info}/RECORD"))
    with zipfile.ZipFile(wheel, "w") as zipped:
        for path, text in {**files, **described, f"{info}/RECORD": record}.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = (0o100755 if "/bin/" in path else 0o100644) << 16
            zipped.writestr(entry, text)
    return wheel
