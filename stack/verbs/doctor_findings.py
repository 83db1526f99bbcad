"""What the doctor's checks find, and how what many ranks have found becomes few lines."""

from __future__ import annotations

import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from stack.parallel.collectives import lost_peer
from stack.util.errors import UserError
from stack.util.retry import reason

Level = Literal["ok", "warn", "fail"]
_WORST_FIRST = ("fail", "warn", "ok")

_WIDTH, _NAME, _MARK = 80, 12, 5


@dataclass(frozen=True)
class Finding:
    """One line of one rank.

    Args:
        text: what was found and, if it is bad, what to do. It is the same on all ranks that have
            found the same; where they may differ in a figure, this is ``value``, in ``unit``.
        fact: name of what should be the same on all nodes; the text is then its value.
        host, rank: who found it; set where the finding is written down.
    """

    level: Level
    text: str
    value: float | None = None
    unit: str = ""
    fact: str = ""
    host: str = ""
    rank: int = 0


Check = Callable[[], Iterable[Finding]]


def attempt(check: Check) -> list[Finding]:
    """What a check finds, and last, as a failure, what it raises."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except UserError as error:
        found.append(Finding("fail", str(error)))
    except OSError as error:
        name = error.filename or "disk"
        found.append(Finding("fail", f"{name}: {reason(error)}"))
    except Exception as error:  # One rank's bug is not to leave the others waiting.
        found.append(Finding("fail", lost_peer(error) or f"{type(error).__name__}: {error}"))
    return [replace(one, text=" ".join(one.text.split())) for one in found]


def within(seconds: float, check: Check) -> list[Finding]:
    """:func:`attempt`, given up after so many seconds: a dead file server answers never."""
    found: list[Finding] = []
    thread = threading.Thread(target=lambda: found.extend(attempt(check)), daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return [Finding("fail", f"no answer within {seconds:.0f} s")]
    return found


def compare(findings: Sequence[Finding], level: Level) -> list[Finding]:
    """Findings with each fact spelled out; ``level`` and the others' value for a rank whose value
    is not that of most."""
    values: dict[str, Counter[str]] = {}
    for one in findings:
        values.setdefault(one.fact, Counter())[one.text] += 1
    compared = []
    for one in findings:
        if one.fact:
            usual = values[one.fact].most_common(1)[0][0]
            text = f"{one.fact} {one.text}"
            if one.text != usual:
                one = replace(one, level=level, fact="")
                text += f", the others {usual}"
            one = replace(one, text=text)
        compared.append(one)
    return compared


def lines(name: str, findings: Sequence[Finding], nodes: Mapping[str, Sequence[int]]) -> list[str]:
    """A check's findings for the terminal, the worst first, what several ranks found once.

    Args:
        nodes: ranks by host, of all that came.
    """
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.level, one.text, one.unit), []).append(one)
    rows: dict[tuple[str, str, str], list[str]] = {}
    for (level, text, _), found in sorted(groups.items(), key=_badness):
        who = _who(found, nodes)
        # What all nodes have in common shares a line.
        together = "" if found[0].fact else text
        rows.setdefault((level, who, together), []).append(text + _figures(found))
    printed = []
    for number, ((level, who, _), texts) in enumerate(rows.items()):
        head = f"{'' if number else name:<{_NAME}} {level:<{_MARK}} "
        told = f"{who}: " * bool(who) + ", ".join(texts)
        printed.append(
            textwrap.fill(
                told,
                _WIDTH,
                initial_indent=head,
                subsequent_indent=" " * len(head),
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return printed


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """A check's findings, one entry for the ranks of a host that found the same."""
    entries: dict[tuple[str, str, str], list[int]] = {}
    for one in findings:
        key = (one.level, one.host, one.text + _figures([one]))
        entries.setdefault(key, []).append(one.rank)
    return [
        {"level": level, "host": host, "ranks": ranks, "text": text}
        for (level, host, text), ranks in entries.items()
    ]


def spans(numbers: Iterable[int]) -> str:
    """``0-3, 7`` of 0, 1, 2, 3 and 7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def figure(value: float) -> str:
    """Three digits at least, and no more than needed."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _badness(group: tuple[tuple[str, str, str], list[Finding]]) -> int:
    return _WORST_FIRST.index(group[0][0])


def _figures(found: Sequence[Finding]) -> str:
    values = [one.value for one in found if one.value is not None]
    if not values:
        return ""
    low, high = figure(min(values)), figure(max(values))
    return f" {low if low == high else f'{low} to {high}'} {found[0].unit}"


def _who(found: Sequence[Finding], nodes: Mapping[str, Sequence[int]]) -> str:
    """The nodes that found something, with ranks where not all of a node did."""
    ranks: dict[str, set[int]] = {}
    for one in found:
        ranks.setdefault(one.host, set()).add(one.rank)
    whole = {host for host in ranks if ranks[host] >= set(nodes.get(host, [-1]))}
    if whole == set(nodes):
        return f"{len(nodes)} nodes" if len(nodes) > 1 else ""
    named = []
    for host, those in ranks.items():
        some = "" if host in whole else f"rank{'s' * (len(those) > 1)} {spans(those)}"
        named.append(" ".join(filter(None, [host, some])))
    return ", ".join(named)
