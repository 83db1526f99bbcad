"""One URL to bytes, or to the reason why there are none."""

from __future__ import annotations

import email.utils
import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urljoin

from urllib3 import BaseHTTPResponse, Timeout
from urllib3.exceptions import (
    HTTPError,
    IncompleteRead,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    SSLError,
    TimeoutError,
)
from urllib3.util import Url, parse_url

from data_prep.download.connections import connections, limited
from data_prep.download.outcome import FAILED, Miss, MissError, failed, refused
from data_prep.download.robots import Robots, opts_out

log = logging.getLogger(__name__)

_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 530)
_CHUNK = 64 << 10
_ROBOTS_BYTES = 512 << 10
_HEADERS = 128 << 10
"""Beyond the body."""
_SILENT_TRIES, _SILENT_SECONDS = 10, 300.0


@dataclass(frozen=True)
class Limits:
    """How long, how much and how often.

    Args:
        deadline: seconds for one URL, redirects, retries and the pauses between them included;
            waiting for the host's turn is not.
        max_bytes: of one answer, after decompression.
        attempts: requests for one URL, if the trouble looks transient.
        backoff: seconds before the second attempt; twice that before the next, each within half.
        redirects: to follow.
        per_host: requests to one host at a time.
        allow_private: also fetch from addresses that are not of the public internet.
        robots: ask for robots.txt, and obey.
    """

    deadline: float = 30.0
    max_bytes: int = 32 << 20
    attempts: int = 3
    backoff: float = 1.0
    redirects: int = 5
    per_host: int = 4
    allow_private: bool = False
    robots: bool = True


@dataclass
class Task:
    """A row on its way: where it is now, the seconds that it has left, and what it has had:
    attempts at this URL, redirects, and requests in all."""

    row: int
    url: str
    left: float
    attempts: int = 0
    redirects: int = 0
    requests: int = 0


@dataclass(frozen=True)
class Again:
    """The task goes on, perhaps at another URL, after `delay` seconds."""

    delay: float = 0.0


@dataclass
class _Silence:
    """How often in a row a host has not answered, since when, and until when it is left alone."""

    since: float
    tries: int = 0
    until: float = 0.0


class Fetcher:
    """Takes tasks a step further; several threads may, at the same time."""

    def __init__(self, limits: Limits, user_agent: str) -> None:
        self.limits = limits
        self._headers = {"User-Agent": user_agent, "Accept": "image/*,*/*;q=0.5"}
        self._pool = connections(hosts=512, per_host=limits.per_host)
        self._agent = product_token(user_agent)
        self._robots = Robots(self._agent, self._robots_txt, limits.backoff)
        self._silent: dict[str, _Silence] = {}
        self._lock = threading.Lock()

    def step(self, task: Task) -> bytes | Again | Miss:
        """Make one request for a task, and the one for its site's robots.txt if need be. The bytes
        of the answer, if there are."""
        started = time.monotonic()
        try:
            if task.left <= 0:
                raise failed("timeout")
            private, size = self.limits.allow_private, self.limits.max_bytes + _HEADERS
            with limited(started + task.left, size, allow_private=private):
                return self._request(task)
        except MissError as error:
            return error.miss
        # An answer may be of any kind, and so are the errors of those who try to read it.
        except Exception:
            log.exception("%s: an answer that could not be read", task.url)
            return failed("bad_answer").miss
        finally:
            task.left -= time.monotonic() - started

    def _request(self, task: Task) -> bytes | Again:
        place = located(task.url)
        if self.limits.robots:
            try:
                allowed = self._robots.allow(site_of(place), place.url)
            except MissError as error:
                task.attempts += 1
                return self._later(task, error)
            if not allowed:
                raise refused("robots_txt")
        task.attempts += 1
        task.requests += 1
        try:
            with self._asked(place) as answer:
                return self._answered(task, answer)
        except HTTPError as error:
            reason = reason_of(error)
            if reason == "timeout":
                raise failed(reason) from None
            return self._later(task, failed(reason))

    @contextmanager
    def _asked(self, place: Url) -> Iterator[BaseHTTPResponse]:
        """The answer to a request. One that is read to its end leaves its connection for others."""
        host = str(place.host)
        if (known := self._silent.get(host)) and known.until > time.monotonic():
            raise failed("host_silent")
        try:
            answer = self._pool.urlopen(
                "GET",
                place.url,
                headers=self._headers,
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=Timeout(connect=self.limits.deadline / 2, read=None),
            )
        except HTTPError:
            self._note_silence(host)
            raise
        try:
            yield answer
        except HTTPError:
            self._note_silence(host)
            raise
        except BaseException:
            self._heard(host)
            raise
        else:
            self._heard(host)
        finally:
            answer.close()

    def _answered(self, task: Task, answer: BaseHTTPResponse) -> bytes | Again:
        status = answer.status
        if status in _REDIRECTS and (to := answer.headers.get("location")):
            task.redirects += 1
            if task.redirects > self.limits.redirects:
                raise refused("redirects", status)
            task.url, task.attempts = urljoin(task.url, to), 0
            return Again()
        if status in _TRANSIENT:
            pause = seconds_of(answer.headers.get("retry-after", "0"))
            return self._later(task, failed(f"http_{status}", status), pause)
        if status != 200:
            raise refused(f"http_{status}", status)
        if opts_out(answer.headers, self._agent):
            raise refused("opt_out", status)
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind.startswith("text/") or kind.endswith(("html", "json", "xml")):
            raise refused("not_a_picture", status)
        return read_body(answer, self.limits.max_bytes)

    def _later(self, task: Task, failure: MissError, pause: float = 0.0) -> Again:
        """Another attempt, in `pause` seconds or more, if the task has attempts and time left."""
        delay = self.limits.backoff * 2 ** (task.attempts - 1) * random.uniform(0.5, 1.5)
        delay = max(delay, pause)
        hopeless = failure.miss.state != FAILED or failure.miss.reason == "host_silent"
        if hopeless or task.attempts >= self.limits.attempts or delay >= task.left:
            raise failure
        task.left -= delay
        return Again(delay)

    def _robots_txt(self, url: str) -> bytes | None:
        """A site's robots.txt. None there is leave for everything; trouble with it is leave for
        nothing, for now (RFC 9309, 2.3.1)."""
        for _ in range(self.limits.redirects + 1):
            try:
                with self._asked(located(url)) as answer:
                    status = answer.status
                    if status in _REDIRECTS and (to := answer.headers.get("location")):
                        url = urljoin(url, to)
                        continue
                    if status in _TRANSIENT or status >= 500:
                        raise failed(f"robots_http_{status}", status)
                    return answer.read(_ROBOTS_BYTES) if status == 200 else None
            except HTTPError as error:
                raise failed(reason_of(error)) from None
        return None

    def _heard(self, host: str) -> None:
        with self._lock:
            self._silent.pop(host, None)

    def _note_silence(self, host: str) -> None:
        """A host that does not answer, or does not come to an end, is left alone for a while: its
        rows would wait for it one after the other, and hold up all the rest."""
        now = time.monotonic()
        with self._lock:
            silence = self._silent.setdefault(host, _Silence(since=now))
            silence.tries += 1
            if silence.tries >= _SILENT_TRIES and now - silence.since > self.limits.deadline:
                silence.until = now + _SILENT_SECONDS


def located(url: str) -> Url:
    """A URL in its parts; MissError unless it is one of http or https with a host."""
    try:
        place = parse_url(url.strip())
    except LocationValueError:
        raise refused("bad_url") from None
    if place.scheme not in ("http", "https"):
        raise refused("bad_url" if place.scheme is None else "scheme")
    if not place.host:
        raise refused("bad_url")
    return place


def site_of(place: Url) -> str:
    """Scheme, host and port, to which one robots.txt belongs."""
    return f"{place.scheme}://{place.netloc}"


def read_body(answer: BaseHTTPResponse, limit: int) -> bytes:
    """The body of an answer, if it has at most `limit` bytes."""
    length = answer.headers.get("content-length", "")
    if _is_number(length) and int(length) > limit:
        raise refused("too_large", answer.status)
    parts, size = [], 0
    for part in answer.stream(_CHUNK):
        size += len(part)
        if size > limit:
            raise refused("too_large", answer.status)
        parts.append(part)
    return b"".join(parts)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def product_token(user_agent: str) -> str:
    """The name by which robots.txt and X-Robots-Tag may address a user agent (RFC 9110, 10.1.5)."""
    return user_agent.split("/")[0].split()[0]


def seconds_of(retry_after: str) -> float:
    """Seconds from now that a Retry-After header asks for, given as seconds or as a date."""
    if _is_number(retry_after.strip()):
        return float(retry_after)
    try:
        return max(email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0


def reason_of(error: HTTPError) -> str:
    """One word for what went wrong on the way."""
    if isinstance(error, NameResolutionError):
        return "no_such_host"
    if isinstance(error, NewConnectionError):
        return "no_connection"
    if isinstance(error, SSLError):
        return "tls"
    if isinstance(error, TimeoutError):
        return "timeout"
    causes = (error, *error.args)
    if isinstance(error, ProtocolError) and any(isinstance(e, IncompleteRead) for e in causes):
        return "cut_short"
    return "connection"
