"""`data_prep bench`: what download adds to the work on the pictures themselves."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_prep.download.fetch import Limits
from data_prep.download.picture import Target, fit
from data_prep.download.run import Settings, download

_SIZE = (1280, 853)
_QUALITY = 90
_TARGET = Target(512)
_DISTINCT = 32


def bench(pictures: int) -> dict[str, Any]:
    """Decode, resize and encode photographs from memory, a thread on each CPU; then download the
    same ones from a process on this machine. Rates are pictures per second, and per second of
    this process's CPU time, which leaves out the server's."""
    photographs = _photographs()
    cpus = len(os.sched_getaffinity(0))
    found: dict[str, Any] = {"pictures": pictures, "cpus": cpus}
    found["bytes"] = sum(map(len, photographs)) // len(photographs)

    def alone() -> None:
        with ThreadPoolExecutor(cpus) as pool:
            for _ in pool.map(lambda n: fit(_numbered(photographs, n), _TARGET), range(pictures)):
                pass

    found["alone"] = _rates(alone, pictures)
    with _server(photographs) as port, tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.parquet"
        urls = [f"http://127.0.0.1:{port}/{number}" for number in range(pictures)]
        numbers = list(range(pictures))
        pq.write_table(pa.table({"id": numbers, "url": urls, "text": urls}), rows)
        limits = Limits(allow_private=True, per_host=64)
        settings = Settings(_TARGET, limits=limits)
        found["download"] = _rates(lambda: download(rows, Path(folder) / "out", settings), pictures)
    for name in ("per_second", "per_cpu_second"):
        found[f"share_{name}"] = found["download"][name] / found["alone"][name]
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """The figures as a table."""
    shown = [
        f"{found['pictures']} photographs of {_SIZE[0]}x{_SIZE[1]}, {found['bytes'] >> 10} KiB, "
        f"to {_TARGET.resolution}x{_TARGET.resolution}; {found['cpus']} CPUs",
        f"{'':30}{'per second':>12}{'per CPU second':>18}",
    ]
    for name, title in (
        ("alone", "decode, resize, encode alone"),
        ("download", "download"),
    ):
        rates = found[name]
        shown.append(f"{title:30}{rates['per_second']:12.1f}{rates['per_cpu_second']:18.1f}")
    shares = (found["share_per_second"], found["share_per_cpu_second"])
    return [*shown, f"{'download / alone':30}{shares[0]:12.0%}{shares[1]:18.0%}"]


def _rates(work: Callable[[], object], pictures: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {
        "per_second": pictures / (time.perf_counter() - wall),
        "per_cpu_second": pictures / (time.process_time() - cpu),
    }


def _photographs() -> list[bytes]:
    """JPEG files cut from scikit-learn's two photographs."""
    # Imported here: it takes two seconds, and no other verb needs it.
    from sklearn.datasets import load_sample_images

    sources = [Image.fromarray(array) for array in load_sample_images().images]
    made = []
    for number in range(_DISTINCT):
        source = sources[number % len(sources)]
        inset = number * 3
        box = (inset, inset, source.width - inset // 2, source.height - inset // 2)
        buffer = io.BytesIO()
        source.resize(_SIZE, Image.Resampling.LANCZOS, box=box).save(
            buffer, "jpeg", quality=_QUALITY
        )
        made.append(buffer.getvalue())
    return made


def _numbered(photographs: list[bytes], number: int) -> bytes:
    """A photograph that differs from all others by a comment: equal bytes are taken only once."""
    data, comment = photographs[number % len(photographs)], b"%08d" % number
    return data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]


@contextmanager
def _server(photographs: list[bytes]) -> Iterator[int]:
    """A process that serves photographs; gives its port."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(photographs, there), daemon=True
    )
    process.start()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


async def _request(reader: asyncio.StreamReader) -> bytes:
    """The next request; nothing when there are no more."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def _serve(photographs: list[bytes], parent: Connection) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _request(reader):
            path = head.split(b" ", 2)[1][1:]
            if path.isdigit():
                data = _numbered(photographs, int(path))
                status = b"200 OK\r\nContent-Type: image/jpeg"
            else:
                data, status = b"", b"404 Not Found"
            writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(data)))
            writer.write(data)
            await writer.drain()

    async def serve() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=256)
        parent.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())
