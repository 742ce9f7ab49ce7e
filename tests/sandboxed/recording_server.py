"""A server on this machine that tells what it was asked for."""

import http.server
import threading


class RecordingServer:
    """A server that an attacker would like to be asked."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        listener = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                listener.requests.append(self.path)
                if self.path == "/redirect":
                    self.send_response(302)
                    self.send_header("location", "http://attacker.example/stolen")
                elif self.path == "/inside":
                    self.send_response(302)
                    self.send_header("location", f"http://localhost:{listener.port}/stolen")
                else:
                    self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
