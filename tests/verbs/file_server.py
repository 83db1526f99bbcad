"""A web server of a few files, in a thread, on this machine."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATA = bytes(range(256)) * 2000


class FileServer(ThreadingHTTPServer):
    """Serves `files` by their paths, of which /file is DATA, and elsewhere nothing.

    Switches: `cuts`, after how many bytes a connection breaks; `answers`, statuses given before a
    file is. Notes: `sent`, body bytes.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {"/file": DATA}
        self.cuts: list[int] = []
        self.answers: list[int] = []
        self.sent = 0
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.url = f"{self.address}/file"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        here = self.server
        status = here.answers.pop(0) if here.answers else 200
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", here.url)
            self.end_headers()
            return
        if status != 200 or self.path not in here.files:
            self.send_error(status if status != 200 else 404)
            return
        data = here.files[self.path]
        begun = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.send_response(206 if begun else 200)
        self.send_header("Content-Length", str(len(data) - begun))
        self.end_headers()
        part = data[begun:]
        if here.cuts:
            part = part[: here.cuts.pop(0)]
        here.sent += len(part)
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
