"""What may become of a row: its state and the reason for it."""

from __future__ import annotations

from dataclasses import dataclass

SAVED = "saved"
"""In a shard."""
FAILED = "failed"
"""Not this time: a later run tries again."""
REFUSED = "refused"
"""For good: gone, forbidden, not a picture that can be used."""
BLOCKED = "blocked"
"""On a blocklist; never asked for."""
FORGOTTEN = "forgotten"
"""Taken down by `data_prep forget`; never asked for again."""

STATES = (SAVED, FAILED, REFUSED, BLOCKED, FORGOTTEN)


@dataclass(frozen=True)
class Miss:
    """A row without a picture. `status` is the server's last HTTP status, if it gave one."""

    state: str
    reason: str | None
    status: int | None = None


class MissError(Exception):
    """Carries a Miss out of the depths of a fetch."""

    def __init__(self, miss: Miss) -> None:
        super().__init__(miss)
        self.miss = miss


def refused(reason: str, status: int | None = None) -> MissError:
    """The server, or what it sent, rules the row out for good."""
    return MissError(Miss(REFUSED, reason, status))


def failed(reason: str, status: int | None = None) -> MissError:
    """It may work another time."""
    return MissError(Miss(FAILED, reason, status))
