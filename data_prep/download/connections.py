"""HTTP connections with one deadline for all they do, that never lead into a private network.

A timeout of a socket is one of each operation: a server that drips a byte a second never meets it.
Here every read gets what is left until the deadline of the thread's present request.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from data_prep.download.outcome import refused

_UNICAST = ipaddress.IPv6Network("2000::/3")  # All that is given out, RFC 4291.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052.


_RESOLVERS = ThreadPoolExecutor(64, "resolve")
"""A name server that is slow takes its own time, whatever the deadline is."""


class _Limits(threading.local):
    """Of the present request of a thread."""

    deadline = 0.0
    bytes_left = 0
    allow_private = False


_limits = _Limits()


@contextmanager
def limited(deadline: float, max_bytes: int, *, allow_private: bool) -> Iterator[None]:
    """Bound all that this thread reads, writes and connects to inside the context.

    Args:
        deadline: by time.monotonic(), in seconds; TimeoutError after it.
        max_bytes: read at most from the network, headers and all; MissError beyond.
        allow_private: also connect to addresses that are not of the public internet.
    """
    _limits.deadline, _limits.bytes_left = deadline, max_bytes
    _limits.allow_private = allow_private
    yield


def _received(count: int) -> int:
    _limits.bytes_left -= count
    if _limits.bytes_left < 0:
        raise refused("too_large")
    return count


def _left() -> float:
    left = _limits.deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


class _DeadlineSocket(socket.socket):
    def recv_into(self, *args: Any, **options: Any) -> int:
        self.settimeout(_left())
        return _received(super().recv_into(*args, **options))

    def sendall(self, *args: Any, **options: Any) -> None:
        self.settimeout(_left())
        return super().sendall(*args, **options)


class _DeadlineTLSSocket(ssl.SSLSocket):
    def recv_into(self, *args: Any, **options: Any) -> int:
        self.settimeout(_left())
        return _received(super().recv_into(*args, **options))

    def do_handshake(self, block: bool = False) -> None:
        self.settimeout(_left())
        return super().do_handshake(block)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet; an IPv4 address inside one of IPv6
    counts as itself."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        else:
            ip = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else ip)
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _UNICAST:
        return False
    return ip.is_global and not ip.is_multicast


def _connect(connection: HTTPConnection) -> socket.socket:
    """Connect to one of the host's addresses. What is checked is what is connected to: a name
    cannot change its address in between."""
    host, port = connection.host.strip("[]"), connection.port
    resolved = _RESOLVERS.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        found = resolved.result(timeout=_left())
    except TimeoutError as error:
        raise ConnectTimeoutError(connection, f"{host}: the name was not resolved") from error
    except (socket.gaierror, UnicodeError) as error:
        # A name that cannot be encoded for the resolver has no address either.
        reason = error if isinstance(error, socket.gaierror) else socket.gaierror(str(error))
        raise NameResolutionError(host, connection, reason) from error
    if not _limits.allow_private:
        found = [place for place in found if is_public(str(place[4][0]))]
        if not found:
            raise refused("private_address")
    failure: OSError = OSError("no address")
    for family, kind, protocol, _, address in found:
        sock = _DeadlineSocket(family, kind, protocol)
        try:
            sock.settimeout(min(_left(), float(connection.timeout or _left())))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
            continue
        return sock
    if isinstance(failure, TimeoutError):
        raise ConnectTimeoutError(connection, f"{host}: {failure}") from failure
    raise NewConnectionError(connection, f"{host}: {failure}") from failure


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self)


class _TLSConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


def connections(*, hosts: int, per_host: int) -> urllib3.PoolManager:
    """A pool of at most `hosts` hosts with `per_host` idle connections each. All share one TLS
    context: making one reads every root certificate, which takes longer than a picture."""
    context = ssl.create_default_context()
    context.sslsocket_class = _DeadlineTLSSocket
    manager = urllib3.PoolManager(num_pools=hosts, maxsize=per_host, ssl_context=context)
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
    return manager
