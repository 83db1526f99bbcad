"""From what many ranks find to few lines, and from rates to the node at fault: plain data."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from stack.verbs.doctor_findings import Finding, as_json, attempt, compare, lines, within
from stack.verbs.doctor_links import Link, rings, slow_links

NODES = {"node00": [0, 1], "node01": [2, 3], "node02": [4, 5]}


def facts(*values: str, fact: str = "torch") -> list[Finding]:
    hosts = [(host, rank) for host, ranks in NODES.items() for rank in ranks]
    return [
        Finding("ok", value, fact=fact, host=host, rank=rank)
        for value, (host, rank) in zip(values, hosts, strict=True)
    ]


def test_a_node_that_differs_is_named() -> None:
    same = compare(facts(*["2.13.0"] * 6), "fail")
    assert lines("packages", same, NODES) == ["packages     ok    3 nodes: torch 2.13.0"]
    other = compare(facts(*["2.13.0"] * 2, *["2.11.0"] * 2, *["2.13.0"] * 2), "fail")
    assert lines("packages", other, NODES) == [
        "packages     fail  node01: torch 2.11.0, the others 2.13.0",
        "             ok    node00, node02: torch 2.13.0",
    ]
    assert as_json(other)[1] == {
        "level": "fail",
        "host": "node01",
        "ranks": [2, 3],
        "text": "torch 2.11.0, the others 2.13.0",
    }


def test_ranks_are_named_where_not_all_of_a_node_differ() -> None:
    found = compare(facts("a", "a", "a", "b", "a", "a", fact="x"), "warn")
    assert (
        lines("machine", found, NODES)[0] == "machine      warn  node01 rank 3: x b, the others a"
    )


def test_figures_of_many_are_a_range_and_lines_are_short() -> None:
    found = [
        Finding("ok", "a folder that is read at", 10.0 * (rank + 1), "MB/s", host=host, rank=rank)
        for host, ranks in NODES.items()
        for rank in ranks
    ]
    [line] = lines("data", found, NODES)
    assert line.endswith("3 nodes: a folder that is read at 10 to 60 MB/s")
    long = [Finding("fail", "word " * 60, host="node00", rank=0)]
    assert all(len(row) <= 80 for row in lines("data", long, NODES)[0].splitlines())


def test_one_check_that_raises_or_hangs_is_one_failure() -> None:
    def half() -> Any:
        yield Finding("ok", "first")
        raise ZeroDivisionError("never\nmind")

    assert [one.text for one in attempt(half)] == ["first", "ZeroDivisionError: never mind"]
    hang = threading.Event()
    assert within(0.1, lambda: [Finding("ok", str(hang.wait()))])[0].level == "fail"
    hang.set()


@pytest.mark.parametrize("hosts", ["aabb", "aaabbb", "abc", "ab", "aaaaa", "aabbc", "a"])
def test_no_rank_has_two_links_in_a_turn(hosts: str) -> None:
    for kind, chain in rings(list(hosts)).items():
        for turn in range(3):
            ends = [rank for link in chain if link.turn == turn for rank in link[:2]]
            assert len(ends) == len(set(ends))
        for link in chain:
            assert (hosts[link.source] == hosts[link.target]) == (kind == "within nodes")


def test_the_node_with_the_slow_links_is_blamed() -> None:
    """Within nodes is ten times as fast as between them, which is no fault."""
    hosts = list("aabbccdd")
    chains = rings(hosts)
    assert [len(chain) for chain in chains.values()] == [8, 8]
    rates = dict.fromkeys(chains["within nodes"], 100.0)
    assert slow_links("within nodes", rates, hosts) == []
    rates = dict.fromkeys(chains["between nodes"], 10.0)
    bad = [link for link in rates if "c" in (hosts[link.source], hosts[link.target])]
    told = slow_links("between nodes", rates | dict.fromkeys(bad, 1.0), hosts)
    assert len(told) == 4
    assert {hosts[rank] for rank, _ in told} == {"c"}
    assert all("1 GB/s, the median between nodes is 5.5 GB/s" in text for _, text in told)


def test_where_one_link_tells_no_more_both_ends_are_named() -> None:
    rates = {Link(0, 1, 0): 10.0, Link(1, 2, 1): 10.0, Link(2, 0, 2): 1.0}
    [(rank, text)] = slow_links("between nodes", rates, list("abc"))
    assert rank == 2
    assert text.endswith("look at this node's links, or at those of a")
