"""Where download goes, whom it obeys, and whose turn it is."""

from __future__ import annotations

import threading
import time
from collections import Counter
from email.utils import formatdate
from types import SimpleNamespace

import pytest
import urllib3

from data_prep.download import connections as connections_module
from data_prep.download import fetch
from data_prep.download import robots as robots_module
from data_prep.download.connections import connections, is_public, limited
from data_prep.download.fetch import (
    Again,
    Fetcher,
    Limits,
    Task,
    located,
    product_token,
    seconds_of,
    site_of,
)
from data_prep.download.outcome import Miss, MissError, failed
from data_prep.download.robots import Robots, opts_out
from data_prep.download.turns import Turns
from tests.data_prep.picture_server import PictureServer, running


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),  # Where clouds keep their credentials.
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("2002:7f00:1::", False),  # 6to4 of 127.0.0.1.
        ("64:ff9b::a00:1", False),  # NAT64 of 10.0.0.1.
        ("64:ff9b:1::7f00:1", False),
        ("::127.0.0.1", False),
        ("::ffff:0:10.0.0.1", False),
        ("fec0::1", False),
    ],
)
def test_what_is_public(address, public):
    assert is_public(address) == public


@pytest.mark.parametrize(
    ("url", "site"),
    [
        ("http://Example.org/a", "http://example.org"),
        ("https://user:secret@example.org:8443/a?b#c", "https://example.org:8443"),
        (" http://[2606:4700::1111]/x ", "http://[2606:4700::1111]"),
    ],
)
def test_a_site_is_scheme_host_and_port(url, site):
    assert site_of(located(url)) == site


@pytest.mark.parametrize(
    ("tags", "out"),
    [
        ([], False),
        (["noai"], True),
        (["NoImageAI, noarchive"], True),
        (["noarchive"], False),
        (["noindex"], True),
        (["none"], True),
        (["noai; noimageai"], True),
        (["otherbot: noai"], False),
        (["f-distill: noai"], True),
        (["otherbot: noindex, noai, f-distill: noimageai"], True),
        (["googlebot: nofollow", "noai"], True),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noai"], True),
        (["max-snippet:-1, max-image-preview:large, max-video-preview:-1, noai"], True),
    ],
)
def test_robots_tags_that_opt_out(tags, out):
    headers = urllib3.HTTPHeaderDict([("X-Robots-Tag", tag) for tag in tags])
    assert opts_out(headers, "f-distill") == out


@pytest.mark.parametrize(("value", "out"), [("1", True), ("0", False)])
def test_a_reservation_of_rights_opts_out(value, out):
    assert opts_out(urllib3.HTTPHeaderDict({"tdm-reservation": value}), "f-distill") == out


class Clock:
    """A module's, which the test sets."""

    def __init__(self, monkeypatch, module):
        self.now = 1e9
        clock = {"monotonic": lambda: self.now, "time": lambda: self.now}
        monkeypatch.setattr(module, "time", SimpleNamespace(**clock))


def test_retry_after_is_seconds_or_a_date(monkeypatch):
    now = Clock(monkeypatch, fetch).now
    assert seconds_of("120") == 120
    assert seconds_of(formatdate(now + 60)) == 60
    assert seconds_of(formatdate(now - 60)) == 0
    assert seconds_of("soon") == 0


ROBOTS = """
User-agent: *
Disallow: /private/
Allow: /private/open
Disallow: /*.gif$

User-agent: f-distill
Disallow: /none-of-ours
"""


def test_robots_txt_has_rules_for_us_or_for_all():
    ours = Robots("f-distill", lambda url: ROBOTS.encode("utf-8-sig"), 0.0)
    assert not ours.allow("http://a", "http://a/none-of-ours/1")
    assert ours.allow("http://a", "http://a/private/1")
    other = Robots("other", lambda url: ROBOTS.encode(), 0.0)
    assert not other.allow("http://a", "http://a/private/1")
    assert other.allow("http://a", "http://a/private/open/1")
    assert not other.allow("http://a", "http://a/x.gif")
    assert other.allow("http://a", "http://a/x.jpg")


def test_robots_txt_that_cannot_be_had_forbids_for_now_and_is_asked_for_again(monkeypatch):
    clock = Clock(monkeypatch, robots_module)
    answers = iter([failed("http_503", 503), None])

    def get(url: str) -> bytes | None:
        answer = next(answers)
        if answer:
            raise answer
        return answer

    robots = Robots("f-distill", get, 0.2)
    for _ in range(3):
        with pytest.raises(MissError):
            robots.allow("http://a", "http://a/1")
    clock.now += 0.2
    assert robots.allow("http://a", "http://a/1")
    assert robots.allow("http://a", "http://a/2")


def test_a_pause_that_the_deadline_does_not_allow_is_not_taken():
    limits = Limits(deadline=60.0, allow_private=True, robots=False, backoff=0.01)
    with running(PictureServer()) as server:
        fetcher = Fetcher(limits, "test")
        long, short = (
            Task(0, f"{server.url}/{kind}/1", limits.deadline) for kind in ("too_busy", "flaky")
        )
        assert fetcher.step(long) == Miss("failed", "http_429", 429)
        again = fetcher.step(short)
        assert isinstance(again, Again)
        assert again.delay < 0.05
        assert isinstance(fetcher.step(short), bytes)
    spent = Task(0, "http://127.0.0.1/", 0.0)
    assert fetcher.step(spent) == Miss("failed", "timeout")


@pytest.mark.parametrize("kind", ["drip", "drip_headers"])
def test_no_operation_outlives_the_deadline(kind):
    """A byte each twentieth of a second, of a picture for half a minute and of headers for ever."""
    pool = connections(hosts=4, per_host=1)
    with running(PictureServer()) as server:
        began = time.monotonic()
        with (
            limited(began + 1, 1 << 20, allow_private=True),
            pytest.raises(urllib3.exceptions.TimeoutError),
        ):
            pool.request("GET", f"{server.url}/{kind}/1", retries=False)
    assert time.monotonic() - began > 0.9


def test_a_host_that_never_answers_is_left_alone(monkeypatch):
    """For five minutes, once it has been silent for several tries and longer than a deadline."""
    clock = Clock(monkeypatch, fetch)
    monkeypatch.setattr(connections_module, "time", fetch.time)
    monkeypatch.setattr(fetch, "_SILENT_TRIES", 3)
    limits = Limits(deadline=9.0, allow_private=True, robots=False, attempts=9, backoff=0.001)
    fetcher = Fetcher(limits, "test")

    def reason() -> str | None:
        step = fetcher.step(Task(0, "http://127.0.0.1:1/x", 9.0))
        return step.reason if isinstance(step, Miss) else None

    reasons = []
    for wait in (0, 4, 4, 2, 1, 290, 20):
        clock.now += wait
        reasons.append(reason())
    assert reasons == [None] * 4 + ["host_silent"] * 2 + [None]


def test_turns_bound_the_tasks_of_a_host_and_let_others_pass():
    turns: Turns[int] = Turns(per_host=2)
    for number in range(3):
        turns.put("a", number)
    turns.put("b", 9)
    assert [turns.take(), turns.take(), turns.take()] == [("a", 0), ("a", 1), ("b", 9)]
    turns.put("b", 10)
    turns.done("a")
    assert turns.take() == ("a", 2)
    assert turns.take() == ("b", 10)
    turns.close()
    assert turns.take() is None


def test_a_delayed_task_comes_when_its_time_has_come():
    turns: Turns[str] = Turns(per_host=1)
    turns.put("a", "later", delay=0.1)
    turns.put("b", "soon", delay=0.01)
    began = time.monotonic()
    assert [turns.take(), turns.take()] == [("b", "soon"), ("a", "later")]
    assert time.monotonic() - began >= 0.1


def test_turns_lose_nothing_between_many_threads():
    turns: Turns[int] = Turns(per_host=3)
    seen: Counter[int] = Counter()
    busy: Counter[str] = Counter()
    most: Counter[str] = Counter()
    lock = threading.Lock()

    def work() -> None:
        while turn := turns.take():
            host, task = turn
            with lock:
                seen[task] += 1
                busy[host] += 1
                most[host] = max(most[host], busy[host])
            time.sleep(0.0005)
            with lock:
                busy[host] -= 1
            turns.done(host)

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for task in range(600):
        turns.put(f"host{task % 7 % 3}", task, delay=0.02 if task % 50 == 0 else 0.0)
    limit = time.monotonic() + 300
    while sum(seen.values()) < 600 and time.monotonic() < limit:
        time.sleep(0.01)
    turns.close()
    for thread in threads:
        thread.join()
    assert sorted(seen.elements()) == list(range(600))
    assert max(most.values()) <= 3


def test_a_slow_name_server_does_not_hold_a_row(monkeypatch):
    """Nothing else would end the wait than the answer, which comes after all is over."""
    answered = threading.Event()
    monkeypatch.setattr(connections_module.socket, "getaddrinfo", lambda *_, **__: answered.wait())
    step = Fetcher(Limits(robots=False), "test").step(Task(0, "http://slow.example/x", 0.3))
    answered.set()
    assert step == Miss("failed", "timeout")


def test_a_host_whose_bodies_never_end_is_left_alone(monkeypatch):
    monkeypatch.setattr(fetch, "_SILENT_TRIES", 2)
    limits = Limits(deadline=0.3, allow_private=True, robots=False)
    with running(PictureServer()) as server:
        fetcher = Fetcher(limits, "test")
        steps = [fetcher.step(Task(row, f"{server.url}/drip/1", 0.3)) for row in range(4)]
        reasons = [step.reason for step in steps if isinstance(step, Miss)]
    assert reasons[:2] == ["timeout"] * 2
    assert reasons[-1] == "host_silent"


@pytest.mark.parametrize(
    ("agent", "token"),
    [("f-distill/1.0 (x)", "f-distill"), ("acme/2 (+http://x)", "acme"), ("Some One", "Some")],
)
def test_the_name_that_sites_may_address(agent, token):
    assert product_token(agent) == token
