"""Curves: smoothing and thinning against plain loops, and SVG that a page can colour."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from stack.report.curves import Chart, binned, chart_svg, plain_number, smooth, thin, trend
from stack.report.history import Curve


def curve(n: int, seed: int = 0, low: float = 1.0) -> Curve:
    values = low + np.random.default_rng(seed).random(n)
    return Curve(np.arange(1.0, n + 1), values)


@pytest.mark.parametrize("span", [1, 2, 5, 8, 1000])
@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_smooth_is_a_centred_mean(n: int, span: int) -> None:
    values, half = curve(n).values, span // 2
    expected = [values[max(0, i - half) : i + half + 1].mean() for i in range(n)]
    np.testing.assert_allclose(smooth(values, span), expected)


@pytest.mark.parametrize("n", [1, 99, 100, 101, 1234])
def test_thinned_curves_keep_their_extremes_and_order(n: int) -> None:
    full = curve(n)
    few = thin(full, 100)
    assert len(few.steps) <= 100
    assert few.values.min() == full.values.min()
    assert few.values.max() == full.values.max()
    assert (np.diff(few.steps) > 0).all()
    assert set(zip(few.steps, few.values, strict=True)) <= set(
        zip(full.steps, full.values, strict=True)
    )


@pytest.mark.parametrize(("n", "expected"), [(50, 50), (100, 100), (1000, 100)])
def test_binned_curves_keep_their_mean(n: int, expected: int) -> None:
    few = binned(curve(n), 100)
    assert len(few.steps) == expected
    assert few.values.mean() == pytest.approx(curve(n).values.mean())
    assert few.steps.mean() == pytest.approx(curve(n).steps.mean())


def test_a_spike_does_not_lift_the_trend_of_a_log_scale() -> None:
    steps, values = np.arange(1.0, 301), np.ones(300)
    values[150] = 1e4
    assert trend(Curve(steps, values)).values[150] > 900  # A plateau as wide as the window.
    assert trend(Curve(steps, values), log=True).values.max() == pytest.approx(1e4 ** (1 / 11))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1"),
        (-0.5, "-0.5"),
        (0.002, "0.002"),
        (1500, "1500"),
        (20000, "20k"),
        (150000, "150k"),
        (1e6, "10⁶"),
        (1e-5, "10⁻⁵"),
        (2e-4, "0.0002"),
        (2e-5, "2·10⁻⁵"),
        (0.1 + 0.2, "0.3"),
    ],
)
def test_axis_labels(value: float, text: str) -> None:
    assert plain_number(value) == text


CHARTS = {
    "line": Chart("loss", [curve(30)]),
    "several": Chart("loss", [curve(30, seed) for seed in range(7)], marks=[10, 20]),
    "long": Chart("loss", [curve(5000)]),
    "one point": Chart("loss", [curve(1)]),
    "log": Chart("loss", [curve(30, low=1e-3)], log=True, references=[1]),
    "log of what is not above zero": Chart("loss", [curve(30, low=-0.5)], log=True),
    "constant": Chart("h", band=[Curve(np.arange(9.0) + 1, np.ones(9))] * 3, log=True),
    "band": Chart("r", band=[curve(900, 1, q) for q in (0.1, 2, 8)], log=True, references=[1]),
    "exact": Chart("rate", [curve(30)], exact=True),
    "limits": Chart("share", [curve(30)], limits=(0, 3)),
}


@pytest.mark.parametrize("name", CHARTS)
def test_chart_is_bare_svg_in_the_pages_colours(name: str) -> None:
    svg = chart_svg(CHARTS[name], salt=name)
    root = ET.fromstring(svg.replace("xlink:href", "href"))
    assert root.tag == "svg"
    assert "width" not in root.attrib
    assert "viewBox" in root.attrib
    assert "http" not in svg
    assert not re.search(r"#[0-9a-fA-F]{6}", svg)
    assert set(re.findall(r"url\(#(\w+)\)", svg)) <= set(re.findall(r'id="(\w+)"', svg))
    assert "iteration" in "".join(root.itertext())
    assert svg == chart_svg(CHARTS[name], salt=name)
    assert len(svg) < 60_000


def test_log_scale_is_said_and_used_where_it_can_be() -> None:
    for name, chart in CHARTS.items():
        said = "log scale" in chart_svg(chart, salt=name)
        assert said == (name in {"log", "band"}), name


def test_ids_of_two_charts_do_not_clash() -> None:
    ids = [set(re.findall(r'id="(\w+)"', chart_svg(CHARTS["line"], salt=salt))) for salt in "ab"]
    assert ids[0]
    assert not ids[0] & ids[1]
