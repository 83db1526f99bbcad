"""The numbers of `data_prep stats` as text, 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.stats.funnel import condition, funnel, share

WIDTH = 80
_HOSTS = 10
_FIGURES = {
    "words": "words a caption",
    "tokens": "tokens a caption",
    "shorter_side": "shorter side of the original, pixels",
    "aspect_ratio": "width / height of the original",
}


def lines(told: Mapping[str, Any]) -> list[str]:
    """The whole as lines to print."""
    return [*_funnel(told), *_reasons(told), *_hosts(told), *_shards(told), *_looks(told)]


def _line(label: str, figure: str, beside: str = "") -> str:
    # Hosts and reasons are anyone's: nothing of them may steer a terminal.
    plain = ascii(label)[1:-1]
    cut = plain if len(plain) <= 50 else f"{plain[:47]}..."
    return f"{cut:<50}{figure:>18}{beside:>12}".rstrip()


def _funnel(told: Mapping[str, Any]) -> Iterator[str]:
    for step in funnel(told):
        label = f"  {step.label}" if step.lost else step.label
        yield _line(label, f"{step.count:,}", share(step.count, told["rows"]))
    for sentence in condition(told):
        yield from textwrap.wrap(sentence, WIDTH)


def _reasons(told: Mapping[str, Any]) -> Iterator[str]:
    for state, reasons in told["reasons"].items():
        whole = told["states"][state]
        yield ""
        yield _line(state, "rows", f"of {state}")
        for reason, count in reasons.items():
            yield _line(f"  {reason}", f"{count:,}", share(count, whole))


def _hosts(told: Mapping[str, Any]) -> Iterator[str]:
    if hosts := told["hosts"][:_HOSTS]:
        yield ""
        yield _line("hosts with most rows", "rows", "saved")
        for host in hosts:
            yield _line(
                f"  {host['host']}", f"{host['rows']:,}", share(host["saved"], host["rows"])
            )


def _shards(told: Mapping[str, Any]) -> Iterator[str]:
    if told["shards"]:
        yield ""
        yield _line("shards", f"{told['shards']:,}")
        for name, count in told["fields"].items():
            yield _line(f"  with {name}", f"{count:,}", share(count, told["samples"]))
        for name, count in told["counts"].items():
            yield _line(f"  {name}", f"{count:,}")


def _looks(told: Mapping[str, Any]) -> Iterator[str]:
    figures = told["captions"] | told["resolutions"]
    if not figures:
        return
    yield ""
    yield _line(f"of {told['looked_at']:,} samples looked at", "median", "mean")
    for name, label in _FIGURES.items():
        if found := figures.get(name):
            yield _line(f"  {label}", f"{found['median']:.4g}", f"{found['mean']:.4g}")
    if words := figures.get("words"):
        empty = told["empty_captions"]
        yield _line("  empty captions", f"{empty:,}", share(empty, words["samples"]))
        yield _line("  captions that repeat one before", share(told["duplicate_captions"], 1))
