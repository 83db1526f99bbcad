"""The doctor's check of what lies between ranks: an all-reduce, and each link by itself.

A slow link slows every collective alike, so only point-to-point transfers tell which one it is.
They go around two kinds of rings: the ranks of each node, and the n-th ranks of all nodes, so
that every rank's way out of its node is tried; each kind is compared with its own median.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from stack.parallel.collectives import Ranks, ranks_of
from stack.util.errors import UserError
from stack.verbs.doctor_board import Board
from stack.verbs.doctor_findings import Finding, figure

_WARM_UP, _MOST = 1 << 20, 64 << 20
"""Bytes of the first transfers and of the measured ones at most."""
_TURN = 0.3
"""Seconds that a measured transfer takes at most, or it is of fewer bytes."""
_ROUNDS = 3
"""Transfers of which the fastest counts: other work only slows them down."""
_SLOW = 0.5
"""Share of the median below which a link is at fault."""


class Link(NamedTuple):
    """From one rank to another; in one turn no rank has two links."""

    source: int
    target: int
    turn: int


def links(board: Board, device: torch.device, timeout: float) -> Iterator[Finding]:
    """GB/s of all ranks together and of each link.

    Args:
        timeout: seconds until a rank that waits for another gives up.

    Raises:
        UserError: a sum over the ranks is wrong.
    """
    with ranks_of("ddp", timeout=timeout) as ranks:
        board.write("at", "all-reduce")
        size, seconds = _all_reduce(ranks, device)
        sent = 2 * (ranks.world_size - 1) / ranks.world_size * size
        text = f"all-reduce of {size / 1e6:.0f} MB, each rank sends"
        yield Finding("ok", text, sent / seconds / 1e9, "GB/s")
        hosts = ranks.gather(board.host)
        for kind, chain in rings(hosts).items():
            if chain:
                board.write("at", f"transfers {kind}")
                rates = _rates(ranks, device, chain, size)
                mine = next((link for link in chain if link.source == ranks.rank), None)
                if mine:
                    yield Finding("ok", f"sent to the next rank {kind}", rates[mine], "GB/s")
                for blamed, text in slow_links(kind, rates, hosts):
                    if blamed == ranks.rank:
                        yield Finding("fail", text)


def rings(hosts: Sequence[str]) -> dict[str, list[Link]]:
    """The links that are tried, by kind.

    Args:
        hosts: of each rank.
    """
    nodes: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        nodes.setdefault(host, []).append(rank)
    return {
        "within nodes": [link for ranks in nodes.values() for link in _ring(ranks)],
        "between nodes": [
            link for ranks in zip(*nodes.values(), strict=False) for link in _ring(ranks)
        ],
    }


def _ring(ranks: Sequence[int]) -> list[Link]:
    n = len(ranks)
    if n == 1:
        return []
    turns = [number % 2 for number in range(n)]
    if n % 2:  # The last link then has ends in both turns.
        turns[-1] = 2
    return [Link(ranks[i], ranks[(i + 1) % n], turns[i]) for i in range(n)]


def slow_links(
    kind: str, rates: Mapping[Link, float], hosts: Sequence[str]
) -> list[tuple[int, str]]:
    """The rank at fault and what to say, for each link far below the median. Of its two ends,
    the fault is at the node that has more slow links.

    Args:
        rates: GB/s. hosts: of each rank.
    """
    usual = statistics.median(rates.values())
    slow = [link for link, rate in rates.items() if rate < _SLOW * usual]
    faults = Counter(host for a, b, _ in slow for host in {hosts[a], hosts[b]})
    told = []
    for link in slow:
        blamed, other = sorted(link[:2], key=lambda rank: -faults[hosts[rank]])
        text = (
            f"rank {link.source} to rank {link.target}: {figure(rates[link])} GB/s, the median "
            f"{kind} is {figure(usual)} GB/s; look at this node's links"
        )
        if hosts[blamed] != hosts[other] and faults[hosts[blamed]] == faults[hosts[other]]:
            text += f", or at those of {hosts[other]}"
        told.append((blamed, text))
    return told


def _all_reduce(ranks: Ranks, device: torch.device) -> tuple[int, float]:
    """Bytes of the measured all-reduce, and its seconds on this rank."""
    _reduce(ranks, device, _WARM_UP)  # Connects.
    slowest = max(ranks.gather(_reduce(ranks, device, _WARM_UP)))
    size = min(_MOST, max(_WARM_UP, int(_WARM_UP * _TURN / slowest)))
    return size, min(_reduce(ranks, device, size) for _ in range(_ROUNDS))


def _reduce(ranks: Ranks, device: torch.device, size: int) -> float:
    values = torch.ones(size // 4, device=device)
    start = _start(ranks, device)
    dist.all_reduce(values)
    seconds = _now(device) - start
    if not bool((values == ranks.world_size).all()):
        raise UserError(f"all-reduce: the sum of {ranks.world_size} ones is wrong on {device}")
    return seconds


def _rates(
    ranks: Ranks, device: torch.device, chain: Sequence[Link], size: int
) -> dict[Link, float]:
    """GB/s of every link, on every rank."""
    _pass_on(ranks, device, chain, _WARM_UP)
    best: dict[Link, float] = {}
    for _ in range(_ROUNDS):
        for link, seconds in _pass_on(ranks, device, chain, size).items():
            best[link] = max(best.get(link, 0.0), size / seconds / 1e9)
    return {link: rate for part in ranks.gather(best) for link, rate in part.items()}


def _pass_on(
    ranks: Ranks, device: torch.device, chain: Sequence[Link], size: int
) -> dict[Link, float]:
    """Use every link once; seconds of those that end at this rank."""
    values = torch.ones(size // 4, device=device)
    seconds = {}
    for turn in range(3):
        start = _start(ranks, device)
        for link in chain:
            if link.turn == turn and link.source == ranks.rank:
                dist.send(values, link.target)
            elif link.turn == turn and link.target == ranks.rank:
                dist.recv(values, link.source)
                seconds[link] = _now(device) - start
        _now(device)
    return seconds


def _start(ranks: Ranks, device: torch.device) -> float:
    """The time once all ranks are here; they meet on the CPU, where nothing is queued."""
    _now(device)
    ranks.any(False)
    return time.perf_counter()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
