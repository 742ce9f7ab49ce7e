"""Repositories over HTTP on loopback, by git's own server program; it records who asked for what."""

import json
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit


class GitHttpServer:
    """Serves every repository below `folder`; a path in `redirects` is answered with its new address."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[tuple[str, str | None]] = []
        """The path and the `Authorization` of each request."""
        self.redirects: dict[str, str] = {}
        self.refuses_ids = False
        """True to serve only the tips of refs, as servers with the first protocol do."""
        self.lfs: dict[str, bytes] = {}
        """The content of LFS files by the oid that is asked for."""
        self.lfs_url: str | None = None
        """Where the batch answer sends clients for the content; with a header, else here and without."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def _handle(self) -> None:
                server.requests.append((self.path, self.headers.get("authorization")))
                parts = urlsplit(self.path)
                for start, target in server.redirects.items():
                    if parts.path.startswith(start):
                        self.send_response(302)
                        self.send_header("location", target + self.path.removeprefix(start))
                        self.end_headers()
                        return
                if "/lfs/" in parts.path:
                    self._handle_lfs(parts.path)
                    return
                env = {
                    "PATH": os.environ["PATH"],
                    "GIT_PROJECT_ROOT": str(folder),
                    "GIT_HTTP_EXPORT_ALL": "1",
                    "GIT_CONFIG_COUNT": "1",
                    "GIT_CONFIG_KEY_0": "safe.directory",
                    "GIT_CONFIG_VALUE_0": "*",
                    "GIT_PROTOCOL": "" if server.refuses_ids else self.headers.get("git-protocol", ""),
                    "REQUEST_METHOD": self.command,
                    "PATH_INFO": parts.path,
                    "QUERY_STRING": parts.query,
                    "CONTENT_TYPE": self.headers.get("content-type", ""),
                    "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
                    "REMOTE_ADDR": "127.0.0.1",
                }
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                done = subprocess.run(
                    ["git", "http-backend"], input=body, env=env, capture_output=True, timeout=60, check=True
                )
                head, _, content = done.stdout.partition(b"\r\n\r\n")
                fields = [line.split(": ", 1) for line in head.decode("latin-1").split("\r\n")]
                status = next((value for name, value in fields if name == "Status"), "200 OK")
                self.send_response(int(status.split()[0]))
                for name, value in fields:
                    if name != "Status":
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def _handle_lfs(self, path: str) -> None:
                if path.endswith("/objects/batch"):
                    asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["objects"]
                    action: dict[str, Any] = {"header": {"x-token": "t"}} if server.lfs_url else {}
                    base = server.lfs_url or f"{server.url}/lfs"
                    found = [
                        {**each, "actions": {"download": {**action, "href": f"{base}/{each['oid']}?x=1"}}}
                        for each in asked
                        if each["oid"] in server.lfs
                    ]
                    content = json.dumps({"transfer": "basic", "objects": found}).encode()
                else:
                    content = server.lfs[path.rpartition("/")[2]]
                self.send_response(200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = _handle  # noqa: N815  # the names that the base class calls

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
