"""Pictures: well-formed, and every number where it belongs."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from glm_jax.reporting import charts
from glm_jax.reporting.charts import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, Mark, Panel
from glm_jax.reporting.history import Series
from glm_jax.reporting.markup import Markup, escape, join, tag
from glm_jax.reporting.scales import Scale, fitted


def panel(points, overwritten=(), name="train") -> Panel:
    return Panel("loss", "nats", [Curve(name, Series(points, list(overwritten)), "blue")])


def drawn(chart: Panel, marks=()) -> ElementTree.Element:
    steps = charts.step_scale(100)
    figure = charts.draw(chart, steps, charts.value_scale([chart]), list(marks), 0)
    return ElementTree.fromstring(figure)


def test_a_known_point_is_at_a_known_pixel():
    steps, values = charts.step_scale(100), Scale(0.0, 4.0, HEIGHT - 22, TOP)
    assert charts.path([(0, 0.0), (50, 2.0), (100, 4.0)], steps, values) == (
        f"M{LEFT}.0,{HEIGHT - 22}.0"
        f"L{(LEFT + WIDTH - RIGHT) / 2:.1f},{(HEIGHT - 22 + TOP) / 2:.1f}"
        f"L{WIDTH - RIGHT}.0,{TOP}.0"
    )


def test_a_decade_is_a_decade_on_a_log_scale():
    scale = Scale(1.0, 100.0, 0.0, 200.0, log=True)
    assert [scale(value) for value in (1.0, 10.0, 100.0)] == [0.0, 100.0, 200.0]
    assert scale.ticks(4) == [1, 3, 10, 30, 100]
    assert Scale(1e-4, 1e4, 0, 1, log=True).ticks(4) == [1e-4, 1e-2, 1.0, 1e2, 1e4]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 5000, [0, 1000, 2000, 3000, 4000, 5000]),
        (0.0, 0.23, [0, 0.05, 0.1, 0.15, 0.2]),
        (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]),
        (3.0, 3.0, [3.0]),
    ],
)
def test_ticks_are_round_and_inside(low, high, ticks):
    assert Scale(low, high, 0, 1).ticks() == ticks


def test_an_axis_is_logarithmic_where_the_values_span_far_and_are_positive():
    assert fitted([1, 50], 0, 1, log_from=30).log
    assert not fitted([1, 20], 0, 1, log_from=30).log
    assert not fitted([-1, 50], 0, 1, log_from=30).log
    assert not fitted([], 0, 1, log_from=30).log
    assert fitted([2, 3], 0, 1, log_from=30, zero=True).low == 0
    assert fitted([2.0], 0.0, 10.0, log_from=30)(2.0) == pytest.approx(5.0)


def test_a_line_breaks_where_a_value_is_missing_or_has_no_logarithm():
    steps, values = Scale(0, 4, 0, 4), Scale(1.0, 10.0, 0.0, 1.0, log=True)
    points = [(0, 1.0), (1, None), (2, 10.0), (3, 0.0), (4, 10.0)]
    assert charts.path(points, steps, values) == "M0.0,0.0M2.0,1.0M4.0,1.0"


def test_many_points_become_medians_in_a_band_that_keeps_spikes():
    points = [(step, 1.0) for step in range(20_000)]
    points[777], points[9_999] = (777, 99.0), (9_999, -5.0)
    points[15_000:15_200] = [(step, None) for step in range(15_000, 15_200)]
    thinned = charts.thinned(Series(points, [points[500:1000]]))
    assert len(thinned.points) < 300
    assert {y for _, y in thinned.points} == {1.0, None}
    assert len(thinned.overwritten[0]) < 10
    assert (min(low for _, low, _ in thinned.band), max(high for *_, high in thinned.band)) == (
        -5,
        99,
    )
    steps = [step for step, _ in thinned.points]
    assert steps == sorted(set(steps))
    few = Series(points[:100], [])
    assert charts.thinned(few) == charts.Thinned(points[:100], [], [])


def test_a_band_is_one_closed_outline():
    points = [(step, math.exp(step % 9)) for step in range(3000)]
    figure = drawn(panel(points))
    (band,) = (e.get("d") for e in figure.iter("path") if e.get("class") == "band blue")
    assert (band.count("M"), band[-1]) == (1, "Z")


def test_labels_keep_their_distance_and_stay_inside():
    assert charts.spread([5, 6, 90], 10, 0, 100) == [5, 15, 90]
    assert charts.spread([95, 96, 97], 10, 0, 100) == [80, 90, 100]
    assert charts.spread([], 10, 0, 100) == []


def test_a_panel_shows_its_lines_labels_and_marks():
    chart = panel([(10, 2.0), (100, 1.0)], [[(50, 1.5), (60, 1.6)]])
    figure = drawn(chart, [Mark(50, "bad", "step 50: not finite"), Mark(500, "resumed", "later")])
    classes = [element.get("class") or "" for element in figure.iter()]
    assert sum(name.startswith("line gone") for name in classes) == 1
    assert sum(name.startswith("line thin") for name in classes) == 1
    assert (classes.count("bad"), classes.count("resumed")) == (1, 0)
    label = next(element for element in figure.iter("text") if element.get("class") == "label blue")
    assert label.text == "1"
    assert float(label.get("y")) == pytest.approx(HEIGHT - 22 - 3 + 3.5, abs=8)


def test_the_tick_labels_name_the_value_at_their_height():
    chart = panel([(0, 0.0), (100, 4.0)])
    values = charts.value_scale([chart])
    ticks = [element for element in drawn(chart).iter("text") if element.get("class") == "tick end"]
    for tick in ticks:
        assert float(tick.get("y")) == pytest.approx(values(float(tick.text)) + 3.5, abs=0.01)
    assert len(ticks) > 2


@pytest.mark.parametrize("points", [[(5, 1.0)], [(5, None)], [(1, 0.0), (2, 0.0)]])
def test_odd_series_can_be_drawn(points):
    assert not re.search("nan|inf", ElementTree.tostring(drawn(panel(points)), "unicode"))


def test_names_cannot_leave_their_place():
    figure = drawn(panel([(1, 1.0)], name='</text><script>alert("1")</script>'))
    assert not list(figure.iter("script"))


def test_markup_escapes_everything_that_is_not_markup():
    assert tag("b", "<&>", class_='"x"') == '<b class="&quot;x&quot;">&lt;&amp;&gt;</b>'
    assert join("<", Markup("<br/>"), None, ["&"]) == "&lt;<br/>&amp;"
    assert escape("a\x00\x1b\ud800b") == "a\ufffd\ufffd\ufffdb"
    assert tag("details", open=True, hidden=False, title=None) == '<details open=""></details>'
