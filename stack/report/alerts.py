"""Signs that a distillation goes wrong, a table row each; told in log, status and report."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite, nan
from typing import Any

import numpy as np

from stack.report.history import Curve, History, gone_back

Verdict = str | None
"""What is wrong, in a few words; None if nothing is."""

_LONG = 20
"""Logged rows that make "for long"."""
_SHORT = 3
"""Quick evaluations, of which there are few, whose median is the present value."""
_TWICE = 2
"""Windows in a row, each a row further, that must be wrong."""
_NOISE = 0.02
"""Of what a distance has fallen by: how far it may rise again, for of few pictures it is not known
better than that."""
_KEPT = 2000
"""Rows of each figure that a run remembers while it trains."""
RATE, SPREAD = "lr/student", "h/variance"
"""They tell how long the warm-ups last."""


@dataclass(frozen=True)
class Rule:
    """One sign.

    Args:
        name: of the alert. figure: that is logged, and looked at.
        judge: says what is wrong with the figure's curve so far, of a run that was warm from the
            given iteration on.
    """

    name: str
    figure: str
    judge: Callable[[Curve, float], Verdict]


def stays(bound: float, words: str, *, above: bool = True) -> Callable[[Curve, float], Verdict]:
    """Whether every one of the last _LONG values is at or beyond a bound, in a warm-up too; words
    take their mean and the first iteration of them."""

    def judge(curve: Curve, _warm: float) -> Verdict:
        last = curve.values[-_LONG:]
        if len(last) < _LONG or not ((last >= bound) if above else (last <= bound)).all():
            return None
        return words.format(last.mean(), int(curve.steps[-_LONG]))

    return judge


def rises(by: float, words: str, *, window: int = _LONG) -> Callable[[Curve, float], Verdict]:
    """Whether the median of the last values is so far above that of an earlier window; words take
    the lowest, its iteration, and the present one.

    Only what comes after the warm-up is judged, for a student that is still warming up spreads out
    and draws together again; what it has lost by then is told at its end, for the lowest may be of
    before."""
    return _moves(lambda now, lowest, _: now >= lowest + by, words, window, sign=1)


def falls(to: float, words: str, *, window: int = _LONG) -> Callable[[Curve, float], Verdict]:
    """Whether it is at most this share of the highest before; as :func:`rises`."""
    return _moves(lambda now, highest, _: now <= to * highest, words, window, sign=-1)


def grows(to: float, words: str, *, window: int = _LONG) -> Callable[[Curve, float], Verdict]:
    """Whether it is at least so many times the lowest before, and more of the fall to that is lost
    than noise explains; as :func:`rises`."""

    def wrong(now: float, lowest: float, highest: float) -> bool:
        return now >= to * lowest and now - lowest >= _NOISE * (highest - lowest)

    return _moves(wrong, words, window, sign=1)


def _moves(
    wrong: Callable[[float, float, float], bool], words: str, window: int, *, sign: int
) -> Callable[[Curve, float], Verdict]:
    recent = window + _TWICE - 1  # Rows of the windows that are judged.

    def judge(curve: Curve, warm: float) -> Verdict:
        if len(curve.values) < window + recent or curve.steps[-recent] < warm:
            return None
        sliding = np.lib.stride_tricks.sliding_window_view(curve.values, window)
        medians = np.median(sliding, axis=1)
        earlier = sign * medians[:-recent]
        at = int(earlier.argmin())
        best, worst = float(medians[at]), float(medians[earlier.argmax()])
        if not all(wrong(float(now), best, worst) for now in medians[-_TWICE:]):
            return None
        return words.format(best, int(curve.steps[at + window - 1]), float(medians[-1]))

    return judge


RULES = (
    Rule(
        "mode loss",
        "similarity/fake",
        rises(
            0.1,
            "samples of a batch have grown alike: mean cosine {0:.2f} at iteration {1}, "
            "{2:.2f} now; modes may be getting lost",
        ),
    ),
    Rule(
        "mode loss",
        "quick/in_batch_similarity",
        rises(
            0.05,
            "in-batch similarity has risen from {0:.2f} at iteration {1} to {2:.2f}; modes may "
            "be getting lost",
            window=_SHORT,
        ),
    ),
    Rule(
        "mode loss",
        "quick/mode_entropy",
        falls(
            0.9,
            "the entropy of modes has fallen from {0:.2f} at iteration {1} to {2:.2f}; modes are "
            "getting lost",
            window=_SHORT,
        ),
    ),
    Rule(
        "quality falls",
        "quick/frechet_distance",
        grows(
            1.5,
            "the quick Frechet distance was {0:.3g} at iteration {1} and is {2:.3g} now",
            window=_SHORT,
        ),
    ),
    Rule(
        "h at its clips",
        "r/clipped",
        stays(
            0.5,
            "{0:.0%} of the ratios have been at r_min or r_max since iteration {1}: h is stuck, "
            "and so is what the divergence can tell",
        ),
    ),
    Rule(
        "discriminator saturated",
        "discriminator/accuracy",
        stays(
            0.98,
            "the discriminator has been right {0:.1%} of the time since iteration {1}: its ratio "
            "says little; raise gan.r1_gamma or lower optim.heads.lr",
        ),
    ),
    Rule(
        "colours drift",
        "latent/drift",
        stays(
            1.0,
            "the mean of the student's samples has been {0:.1f} standard deviations from the "
            "data's since iteration {1}: colours drift",
        ),
    ),
)
FIGURES = tuple(dict.fromkeys(rule.figure for rule in RULES))
"""What the rules look at."""


def alerts(history: History) -> list[tuple[str, str]]:
    """Name and words of every sign that the end of a log shows."""
    curves = {name: history.curve(name) for name in (*FIGURES, RATE, SPREAD)}
    return [(rule.name, words) for rule, words in _judge(curves, FIGURES)]


class Watch:
    """The same while a run logs: tells each sign when it begins."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[tuple[int, float]]] = {
            name: deque(maxlen=_KEPT) for name in (*FIGURES, RATE, SPREAD)
        }
        self._on: set[Rule] = set()

    def recall(self, log: Iterable[Mapping[str, Any]], step: int) -> None:
        """Take in the log of a run that now goes on after an iteration. The signs in it count as
        told.

        Args:
            log: the lines of metrics.jsonl, in its order. What was logged after a state that the
                run went back to, now or before, is left out.
        """
        seen = {name: (array("q"), array("d")) for name in self._seen}
        latest = 0
        for row in chain(log, ({"event": "resume", "step": step},)):
            state = gone_back(row, latest)
            if state is not None:
                for steps, values in seen.values():
                    kept = bisect_right(steps, state)
                    del steps[kept:], values[kept:]
                latest = state
            if "event" in row:
                continue
            latest = row["step"]
            for name, (steps, values) in seen.items():
                if isfinite(row.get(name, nan)):
                    steps.append(latest)
                    values.append(row[name])
        for name, points in seen.items():
            self._seen[name].extend(zip(*points, strict=True))
        self._on = {rule for rule, _ in _judge(self._curves(self._seen), FIGURES)}

    def look(self, step: int, row: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Take in a logged row; the signs that are there now and were not a row before."""
        fresh = [name for name in self._seen if isfinite(row.get(name, nan))]
        for name in fresh:
            self._seen[name].append((step, float(row[name])))
        found = _judge(self._curves({*fresh, RATE, SPREAD}), fresh)
        new = [(rule.name, words) for rule, words in found if rule not in self._on]
        self._on = {rule for rule in self._on if rule.figure not in fresh}
        self._on |= {rule for rule, _ in found}
        return new

    def _curves(self, names: Iterable[str]) -> dict[str, Curve]:
        points = {name: np.array(self._seen[name], float).reshape(-1, 2) for name in names}
        return {name: Curve(*both.T) for name, both in points.items()}


def _judge(curves: Mapping[str, Curve], of: Sequence[str]) -> list[tuple[Rule, str]]:
    """Args: of: the figures that are judged."""
    warm = _warm(curves[RATE], curves[SPREAD])
    judged = ((rule, rule.judge(curves[rule.figure], warm)) for rule in RULES if rule.figure in of)
    return [(rule, words) for rule, words in judged if words]


def _warm(rate: Curve, spread: Curve) -> float:
    """The iteration at which both warm-ups were over: the student's, at whose end its learning rate
    is highest, and the ratio's, during which h is 1; as far as the log tells."""
    highest = [rate.steps[rate.values.argmax()]] if rate else []
    varied = spread.steps[spread.values > 0][:1]  # None where h is always 1.
    return float(max((*highest, *varied), default=0))
