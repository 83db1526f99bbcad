"""What ledgers tell of rows, summed over the parts of a download."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from data_prep.download.ledger import Ledger
from data_prep.download.outcome import SAVED, STATES

PENDING = "pending"
"""The state of rows that the ledger does not know yet."""

_HOST = re.compile(r"\s*[a-z][a-z0-9+.-]*://(?:[^/?#]*@)?(\[[^\]/?#]*\]|[^/?#:\s]+)", re.IGNORECASE)
_HOSTS = 50


@dataclass
class Rows:
    """Rows of the whole input and what the filter dropped of it; states and reasons of those that
    the download was given; per host, its rows and the saved ones among them."""

    input: int | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    states: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    saved: Counter[str] = field(default_factory=Counter)

    def add(self, ledger: Ledger) -> int:
        """Add a part's; returns how many of its rows are pending."""
        # Every part tells of the whole input.
        self.input = ledger.about.get("input_rows") or self.input
        self.dropped = ledger.about.get("dropped") or self.dropped
        states = ledger.states()
        start, stop = ledger.about["span"]
        states[PENDING] = stop - start - states.total()
        self.states.update(states)
        self.reasons.update(ledger.reasons())
        for record in ledger.records():
            if host := host_of(record.url):
                self.hosts[host] += 1
                if record.state == SAVED:
                    self.saved[host] += 1
        return states[PENDING]

    def by_state(self) -> dict[str, int]:
        """Every state, those without rows too; nothing if there was no ledger."""
        return {state: self.states[state] for state in (*STATES, PENDING)} if self.states else {}

    def by_reason(self) -> dict[str, dict[str, int]]:
        """Per state its reasons, the most frequent first."""
        told: dict[str, dict[str, int]] = {}
        for (state, reason), count in ranked(self.reasons):
            told.setdefault(state, {})[reason] = count
        return {state: told[state] for state in STATES if state in told}

    def by_host(self) -> list[dict[str, Any]]:
        """The hosts with most rows."""
        return [
            {
                "host": host,
                "rows": rows,
                "saved": self.saved[host],
                "share": self.saved[host] / rows,
            }
            for host, rows in ranked(self.hosts)[:_HOSTS]
        ]


def host_of(url: str | None) -> str | None:
    """The host that a URL names, in lower case; None if it names none."""
    match = _HOST.match(url or "")
    return match[1].lower() if match else None


def ranked(counter: Counter[Any]) -> list[tuple[Any, int]]:
    """The highest counts first, equal ones by name."""
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))
