"""What a site lets robots fetch, and what an answer's headers say of training models on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from protego import Protego

OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""Directives of X-Robots-Tag that rule a picture out."""


@dataclass
class _Site:
    lock: threading.Lock = field(default_factory=threading.Lock)
    known: bool = False
    rules: Protego | None = None


class Robots:
    """robots.txt of every site (scheme, host, port), asked for once.

    Args:
        agent: the name that sites may have rules for.
        get: fetches robots.txt of a site; None when it has none. What it raises is for the
            caller, and the site is asked again next time.
    """

    def __init__(self, agent: str, get: Callable[[str], bytes | None]) -> None:
        self.agent, self.get = agent, get
        self._sites: dict[str, _Site] = {}
        self._lock = threading.Lock()

    def allow(self, site: str, url: str) -> bool:
        """Whether `url` of `site` may be fetched."""
        with self._lock:
            known = self._sites.setdefault(site, _Site())
        # The other threads that want the same site wait for the answer to one.
        with known.lock:
            if not known.known:
                text = self.get(f"{site}/robots.txt")
                known.rules = Protego.parse(text.decode(errors="replace")) if text else None
                known.known = True
        return known.rules is None or known.rules.can_fetch(url, self.agent)


def opts_out(headers: Mapping[str, str], agent: str) -> bool:
    """Whether an answer's headers rule out its use for training: X-Robots-Tag, for all robots or
    for `agent`, or a reservation of rights for text and data mining (W3C TDMRep)."""
    if headers.get("tdm-reservation", "").strip() == "1":
        return True
    addressed = ""
    for part in headers.get("x-robots-tag", "").lower().split(","):
        # "bot: directive, directive" addresses one robot, until the next "other: directive".
        name, colon, directive = part.rpartition(":")
        if colon and name.strip() not in ("unavailable_after", "max-image-preview"):
            addressed = name.strip()
        if directive.strip() in OPT_OUT and addressed in ("", agent.lower()):
            return True
    return False
