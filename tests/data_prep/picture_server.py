"""A web server of pictures and of everything else that the web answers with."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.serving import running

__all__ = ["PictureServer", "encoded", "pixels", "rows_file", "running"]


def pixels(number: int, width: int = 80, height: int = 64, channels: int = 3) -> np.ndarray:
    """A smooth picture of its own for every number, uint8 (H, W, channels)."""
    coarse = np.random.Philox(key=number).random_raw(5 * 5 * channels)
    small = (coarse >> np.uint64(56)).astype(np.uint8).reshape(5, 5, channels)
    planes = [
        np.asarray(Image.fromarray(small[..., c]).resize((width, height), Image.Resampling.BICUBIC))
        for c in range(channels)
    ]
    return np.stack(planes, axis=2)


def encoded(image: Image.Image, kind: str = "jpeg", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def photo(number: int) -> bytes:
    return encoded(Image.fromarray(pixels(number)), quality=90)


class PictureServer(ThreadingHTTPServer):
    """Answers /KIND/NUMBER; `asked` counts requests by path, `at_once` the most at a time."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, robots: str | None = None) -> None:
        _bomb(0)  # Takes seconds; not inside a request.
        super().__init__(("127.0.0.1", 0), _Handler)
        self.robots = robots
        self.asked: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.now = self.at_once = 0
        self.lock = Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: PictureServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.asked[self.path] += 1
            self.server.agents.add(self.headers["user-agent"])
            self.server.now += 1
            self.server.at_once = max(self.server.at_once, self.server.now)
        try:
            if self.path == "/robots.txt":
                text = self.server.robots
                self.send(404 if text is None else 200, (text or "").encode(), kind="text/plain")
                return
            kind, _, number = self.path[1:].partition("/")
            KINDS[kind](self, int(number))
        finally:
            with self.server.lock:
                self.server.now -= 1

    def send(
        self, status: int, data: bytes = b"", *, kind: str = "image/jpeg", **headers: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    @property
    def times(self) -> int:
        """How often this path has been asked for, this time included."""
        return self.server.asked[self.path]

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # The other side has had enough.

    def log_message(self, *_: object) -> None:
        """Tests speak for themselves."""


def _picture(make: Callable[[int], bytes], **headers: str) -> Callable[[_Handler, int], None]:
    return lambda to, number: to.send(200, make(number), **headers)


def _status(status: int, **headers: str) -> Callable[[_Handler, int], None]:
    return lambda to, number: to.send(status, b"<html>no</html>", kind="text/html", **headers)


def _then_fine(status: int, **headers: str) -> Callable[[_Handler, int], None]:
    def answer(to: _Handler, number: int) -> None:
        if to.times == 1:
            to.send(status, **headers)
        else:
            to.send(200, photo(status + number))

    return answer


def _redirect(where: Callable[[int], str]) -> Callable[[_Handler, int], None]:
    return lambda to, number: to.send(302, Location=where(number))


def _drip(to: _Handler, number: int) -> None:
    """The whole picture, a byte each twentieth of a second."""
    data = photo(number)
    to.send_response(200)
    to.send_header("Content-Type", "image/jpeg")
    to.send_header("Content-Length", str(len(data)))
    to.end_headers()
    for place in range(len(data)):
        to.wfile.write(data[place : place + 1])
        time.sleep(0.05)


def _drip_headers(to: _Handler, number: int) -> None:
    to.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        to.wfile.write(b"x")
        time.sleep(0.05)


def _slow(to: _Handler, number: int) -> None:
    time.sleep(0.5)
    to.send(200, photo(200 + number))


def _huge(to: _Handler, number: int) -> None:
    """200 MB of no stated length."""
    to.send_response(200)
    to.send_header("Content-Type", "image/jpeg")
    to.send_header("Connection", "close")
    to.end_headers()
    to.close_connection = True
    for _ in range(200):
        to.wfile.write(bytes(1 << 20))


def _cut(to: _Handler, number: int) -> None:
    data = photo(number)
    to.send_response(200)
    to.send_header("Content-Length", str(len(data)))
    to.end_headers()
    to.wfile.write(data[: len(data) // 2])
    to.close_connection = True


def _hang_up(to: _Handler, number: int) -> None:
    to.close_connection = True


def _raw(head: bytes, body: bytes = b"") -> Callable[[_Handler, int], None]:
    """An answer as no library would send it."""

    def answer(to: _Handler, number: int) -> None:
        to.wfile.write(b"HTTP/1.1 " + head + b"\r\n\r\n" + body)
        to.close_connection = True

    return answer


_CHUNKED = b"200 OK\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked"


def _endless_chunk(to: _Handler, number: int) -> None:
    """A chunk of a negative size, which is taken for all that there is."""
    _raw(_CHUNKED, b"-1\r\n")(to, number)
    for _ in range(64):
        to.wfile.write(bytes(1 << 20))


def _rotated(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(pixels(number)), exif=exif)


def _animated(number: int) -> bytes:
    frames = [Image.fromarray(pixels(n)) for n in (number, number + 1)]
    return encoded(frames[0], "webp", save_all=True, append_images=frames[1:])


def _wide(number: int) -> bytes:
    """16 bits a pixel, one channel."""
    return encoded(
        Image.fromarray(pixels(number, channels=1)[..., 0].astype(np.uint16) * 257), "png"
    )


@cache
def _bomb(number: int) -> bytes:
    return encoded(Image.new("1", (15_000, 15_000)), "png", compress_level=1)


KINDS: dict[str, Callable[[_Handler, int], None]] = {
    "jpg": _picture(photo),
    "exact": _picture(lambda n: encoded(Image.fromarray(pixels(n, 32, 32)), quality=90)),
    "exact_png": _picture(lambda n: encoded(Image.fromarray(pixels(n, 32, 32)), "png")),
    "png": _picture(lambda n: encoded(Image.fromarray(pixels(n)), "png")),
    "webp": _picture(lambda n: encoded(Image.fromarray(pixels(n)), "webp")),
    "avif": _picture(lambda n: encoded(Image.fromarray(pixels(n)), "avif")),
    "gif": _picture(lambda n: encoded(Image.fromarray(pixels(n)).quantize(), "gif")),
    "grey": _picture(lambda n: encoded(Image.fromarray(pixels(n)).convert("L"))),
    "cmyk": _picture(lambda n: encoded(Image.fromarray(pixels(n)).convert("CMYK"))),
    "wide": _picture(_wide),
    "alpha": _picture(lambda n: encoded(Image.fromarray(pixels(n, channels=4), "RGBA"), "png")),
    "palette": _picture(
        lambda n: encoded(
            Image.fromarray(pixels(n)).quantize(16), "png", transparency=b"\0\x80\xff"
        )
    ),
    "rotated": _picture(_rotated),
    "gone": _status(410),
    "missing": _status(404),
    "forbidden": _status(403),
    "html": lambda to, n: to.send(200, b"<!doctype html><p>sorry" * 50, kind="image/jpeg"),
    "page": lambda to, n: to.send(200, b"<!doctype html>", kind="text/html; charset=utf-8"),
    "noai": _picture(photo, X_Robots_Tag="noarchive, noai"),
    "reserved": _picture(photo, tdm_reservation="1"),
    "busy": _then_fine(429, Retry_After="0"),
    "too_busy": _status(429, Retry_After="3600"),
    "broken": _status(500),
    "flaky": _then_fine(500),
    "bad_location": _raw(b"302 Found\r\nLocation: http://[::bad/x"),
    "bad_retry": _raw("429 Busy\r\nRetry-After: \u00b2".encode("latin-1")),
    "bad_length": _raw("200 OK\r\nContent-Length: \u00b2".encode("latin-1"), b"x"),
    "bad_chunk": _raw(_CHUNKED, b"-5\r\nhello\r\n"),
    "endless_chunk": _endless_chunk,
    "moved": _redirect(lambda n: f"/jpg/{n + 100}"),
    "loop": _redirect(lambda n: f"/loop/{n}"),
    "inside": _redirect(lambda n: f"http://10.0.0.1/{n}"),
    "slow": _slow,
    "drip": _drip,
    "drip_headers": _drip_headers,
    "huge": _huge,
    "cut": _cut,
    "hang_up": _hang_up,
    "truncated": _picture(lambda n: photo(n)[:-400]),
    "corrupt": _picture(lambda n: photo(n)[:700] + b"\xff\xd9\x00\xff" * 200),
    "garbage": _picture(lambda n: bytes(range(256)) * 20),
    "animated": _picture(_animated),
    "bomb": _picture(lambda n: _bomb(0)),
    "tiny": _picture(lambda n: encoded(Image.fromarray(pixels(n, 20, 40)))),
    "blank": _picture(lambda n: encoded(Image.new("RGB", (64, 64), (n % 256, 0, 0)))),
    "notice": _picture(lambda n: photo(10**6)),
}
"""What is at /KIND/NUMBER."""


def rows_file(path: Path, urls: list[str], **columns: list[object]) -> Path:
    """A parquet file of rows with these URLs."""
    table = {
        "id": list(range(1000, 1000 + len(urls))),
        "url": urls,
        "text": [f"caption &amp; {n}" for n in range(len(urls))],
        "image_phash": [f"{n:016x}" for n in range(len(urls))],
        **columns,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, row_group_size=16)
    return path
