"""What a site lets robots fetch, and what an answer's headers say of training models on it."""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from protego import Protego
from urllib3 import HTTPHeaderDict

from data_prep.download.outcome import MissError

OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""Directives of X-Robots-Tag that rule a picture out."""


_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Directives that have a colon and a value; any other name before a colon is a robot's."""

_SITES = 10_000
"""Whose rules are kept; of the others they are asked for again."""


@dataclass
class _Site:
    lock: threading.Lock = field(default_factory=threading.Lock)
    known: bool = False
    rules: Protego | None = None
    trouble: MissError | None = None
    until: float = 0.0


class Robots:
    """robots.txt of sites (scheme, host, port), asked for once.

    Args:
        agent: the product token that sites may have rules for.
        get: fetches a robots.txt; None when there is none. A MissError is for all who ask in the
            next `pause` seconds; then it is tried again.
    """

    def __init__(self, agent: str, get: Callable[[str], bytes | None], pause: float) -> None:
        self.agent, self.get, self.pause = agent, get, pause
        self._sites: OrderedDict[str, _Site] = OrderedDict()
        self._lock = threading.Lock()

    def allow(self, site: str, url: str) -> bool:
        """Whether `url` of `site` may be fetched."""
        with self._lock:
            known = self._sites.setdefault(site, _Site())
            self._sites.move_to_end(site)
            if len(self._sites) > _SITES:
                self._sites.popitem(last=False)
        # The other threads that want the same site wait for the answer to one.
        with known.lock:
            if not known.known:
                self._ask(site, known)
        return known.rules is None or known.rules.can_fetch(url, self.agent)

    def _ask(self, site: str, known: _Site) -> None:
        if known.trouble and time.monotonic() < known.until:
            raise known.trouble
        try:
            text = self.get(f"{site}/robots.txt")
        except MissError as error:
            known.trouble, known.until = error, time.monotonic() + self.pause
            raise
        # Some begin with a mark of their encoding.
        rules = text.decode("utf-8-sig", errors="replace") if text else ""
        known.rules, known.known = Protego.parse(rules) if rules else None, True


def opts_out(headers: HTTPHeaderDict, agent: str) -> bool:
    """Whether an answer's headers rule out its use for training: X-Robots-Tag, for all robots or
    for `agent`, or a reservation of rights for text and data mining (W3C TDMRep)."""
    if headers.get("tdm-reservation", "").strip() == "1":
        return True
    # Each header of this name is read alone: one may begin with a robot that it is for.
    return any(
        _tag_opts_out(line.lower(), agent.lower()) for line in headers.getlist("x-robots-tag")
    )


def _tag_opts_out(line: str, agent: str) -> bool:
    addressed = ""
    for part in re.split("[,;]", line):
        name, colon, directive = (word.strip() for word in part.partition(":"))
        if not colon:
            name, directive = "", name
        if name in _VALUED:
            continue
        addressed = name or addressed
        if directive in OPT_OUT and addressed in ("", agent):
            return True
    return False
