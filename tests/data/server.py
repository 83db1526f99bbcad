"""A web server of one folder in a thread, that fails as it is told to."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import AbstractContextManager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.serving import running


class ShardServer(ThreadingHTTPServer):
    """Serves `root` at `url`, with ranges and etags.

    Switches, the first three per file name: `failures`, how many requests are still to be
    answered with 500; `cuts`, after how many bytes of which body (counted from 0) the connection
    breaks; `wrong`, how many bodies are still to be garbled; `ranges`, for how many bodies of a
    file to know them; `sized`, the methods that are told lengths; `etag`, of every file, its hash
    if empty.

    Notes: `sent`, body bytes per file name; `seen`, method, path and Authorization of requests.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.place = root, f"127.0.0.1:{self.server_port}"
        self.url = f"http://{self.place}"
        self.etag, self.ranges, self.sized = "", 10**6, {"HEAD", "GET"}
        self.failures: Counter[str] = Counter()
        self.cuts: dict[str, tuple[int, int]] = {}
        self.wrong: Counter[str] = Counter()
        self.bodies: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.seen: list[tuple[str, str, str | None]] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ShardServer

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _answer(self, *, body: bool) -> None:
        here = self.server
        here.seen.append((self.command, self.path, self.headers.get("Authorization")))
        file = here.root / self.path.partition("?")[0].lstrip("/")
        if here.failures[file.name] > 0:
            here.failures[file.name] -= 1
            self.send_error(500)
        elif not file.is_file():
            self.send_error(404)
        else:
            self._send(file.name, file.read_bytes(), body=body)

    def _send(self, name: str, data: bytes, *, body: bool) -> None:
        here, whole = self.server, len(data)
        etag = here.etag or sha256(data).hexdigest()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if part := asked if here.bodies[name] < here.ranges else None:
            start, end = int(part[1]), int(part[2]) + 1
            data = data[start:end]
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{whole}")
        if self.command in here.sized:
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_header("Connection", "close")
        self.send_header("ETag", etag)
        self.end_headers()
        if body:
            self._write(name, data)

    def _write(self, name: str, data: bytes) -> None:
        here = self.server
        number, here.bodies[name] = here.bodies[name], here.bodies[name] + 1
        if here.wrong[name] > 0:
            here.wrong[name] -= 1
            data = bytes([data[0] ^ 1]) + data[1:]
        cut, after = here.cuts.get(name, (-1, 0))
        if number == cut:
            data, self.close_connection = data[:after], True
        here.sent[name] += len(data)
        self.wfile.write(data)


def serving(root: Path) -> AbstractContextManager[ShardServer]:
    """A server of the folder, which stops at the end of the context."""
    return running(ShardServer(root))
