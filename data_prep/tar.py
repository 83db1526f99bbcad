"""Tars whose bytes depend on nothing but what is in them."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile

from zlib_ng.zlib_ng import crc32


class TarWriter:
    """A plain tar without times, owners or modes, hashed while it is written."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self.file, self.size, self.hash = file, 0, hashlib.sha256()

    def add(self, name: str, data: bytes) -> tuple[int, int, int]:
        """Append a member; returns offset, size and crc32 of its bytes."""
        self._put(tar_header(name.encode(), len(data)))
        place = (self.size, len(data), crc32(data))
        self._put(data + bytes(-len(data) % tarfile.BLOCKSIZE))
        return place

    def close(self) -> int:
        """End the archive; returns its size in bytes."""
        end = self.size + 2 * tarfile.BLOCKSIZE
        self._put(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
        return self.size

    def _put(self, data: bytes) -> None:
        self.file.write(data)
        self.hash.update(data)
        self.size += len(data)


def tar_header(name: bytes, size: int) -> bytes:
    """The header of a regular file; what tarfile writes, in a tenth of the time."""
    if len(name) >= tarfile.LENGTH_NAME or size >= 8**11:
        info = tarfile.TarInfo(name.decode())
        info.size = size
        return info.tobuf(tarfile.GNU_FORMAT)
    zero = b"0000000"
    head = (name, b"0000644", zero, zero, b"%011o" % size, b"0" * 11, b" " * 8, b"0", b"ustar  ")
    header = struct.pack("100s8s8s8s12s12s8sc100x8s247x", *head)
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]
