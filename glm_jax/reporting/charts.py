"""Small multiples: panels of one size over one axis of steps, as inline SVG.

The picture is complete without JavaScript. `page.js` reads `Panel.data` and shows the values under
the pointer in the captions of all panels at once.
"""

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from glm_jax.reporting import units
from glm_jax.reporting.history import Points, Series
from glm_jax.reporting.markup import Markup, escape, tag
from glm_jax.reporting.scales import Scale, fitted

WIDTH, HEIGHT = 380, 158
LEFT, RIGHT, TOP, BOTTOM = 44, 58, 10, 22
_LABEL_GAP = 12
_BUCKETS = 280  # of a drawn line: about one per pixel
_MAX_DOTS = 40


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line of a panel; `colour` is a class of `page.css`, `strong` lines have dots."""

    name: str
    series: Series
    colour: str
    strong: bool = False

    @functools.cached_property
    def thinned(self) -> "Thinned":
        """What is drawn of the series."""
        return thinned(self.series)


@dataclasses.dataclass(frozen=True)
class Thinned:
    """A series with about a point per pixel.

    Attributes:
      band: (step, lowest, highest) of the buckets, so that no spike is lost; empty where the points
        are those of the series.
    """

    points: Points
    overwritten: list[Points]
    band: list[tuple[float, float, float]]


@dataclasses.dataclass(frozen=True)
class Mark:
    """Something that happened at a step: `kind` is resumed, rewound, stage or bad."""

    step: int
    kind: str
    title: str


@dataclasses.dataclass(frozen=True)
class Panel:
    """A chart before it is drawn.

    Attributes:
      unit: of the values, as the caption names it.
      form: how values read: plain, percent or si.
      log_from: ratio of the extremes from which the axis is logarithmic.
      zero: whether a linear axis begins at zero.
    """

    title: str
    unit: str
    curves: Sequence[Curve]
    form: str = "plain"
    log_from: float = 30.0
    zero: bool = False

    def values(self) -> Iterable[float]:
        """All that the axis has to hold."""
        for curve in self.curves:
            for points in (curve.series.points, *curve.series.overwritten):
                yield from (y for _, y in points if y is not None)

    def data(self) -> dict[str, Any]:
        """What the pointer reads out."""
        curves = []
        for curve in self.curves:
            points = curve.thinned.points
            curves.append(
                {
                    "name": curve.name,
                    "colour": curve.colour,
                    "x": [x for x, _ in points],
                    "y": [None if y is None else float(f"{y:.5g}") for _, y in points],
                }
            )
        return {"form": self.form, "curves": curves}


def step_scale(last_step: int) -> Scale:
    """The axis that all panels share."""
    return Scale(0, max(1, last_step), LEFT, WIDTH - RIGHT)


def value_scale(panels: Sequence[Panel]) -> Scale:
    """One axis for panels that are to be compared."""
    values = itertools.chain.from_iterable(panel.values() for panel in panels)
    first = panels[0]
    return fitted(values, HEIGHT - BOTTOM, TOP, log_from=first.log_from, zero=first.zero)


def draw(panel: Panel, steps: Scale, values: Scale, marks: Sequence[Mark], number: int) -> Markup:
    """A panel as a figure; `number` is its place in the list that `page.js` reads."""
    kind = f"{panel.unit}, log scale" if values.log else panel.unit
    caption = tag(
        "figcaption",
        tag("span", tag("b", panel.title), " ", tag("small", kind), class_="title"),
        tag("output", _latest(panel)),
    )
    picture = tag(
        "svg",
        tag("title", f"{panel.title}, {kind}, by step"),
        _axes(steps, values, panel.form),
        [_mark(mark, steps) for mark in marks if 0 <= mark.step <= steps.high],
        [_curve(curve, steps, values) for curve in panel.curves],
        _labels(panel, steps, values),
        tag("line", class_="cursor", y1=TOP, y2=HEIGHT - BOTTOM),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        data_panel=number,
    )
    return tag("figure", caption, picture, class_="panel")


def formatted(value: float | None, form: str) -> str:
    """A value as a panel of this form writes it."""
    if form == "percent":
        return units.percent(value)
    return units.amount(value) if form == "si" else units.number(value)


def thinned(series: Series) -> Thinned:
    """The series itself, or where it has more points than pixels the median of every bucket."""
    points = series.points
    if len(points) <= 2 * _BUCKETS:
        return Thinned(points, series.overwritten, [])
    width = (points[-1][0] - points[0][0]) / _BUCKETS
    overwritten = [_medians(stretch, width) for stretch in series.overwritten]
    return Thinned(_medians(points, width), overwritten, _extremes(points, width))


def _medians(points: Points, width: float) -> Points:
    buckets = ((bucket[0][0], _finite(bucket)) for bucket in _bucketed(points, width))
    return [
        (x, statistics.median(y for _, y in finite) if finite else None) for x, finite in buckets
    ]


def _extremes(points: Points, width: float) -> list[tuple[float, float, float]]:
    finite = filter(None, map(_finite, _bucketed(points, width)))
    return [
        (bucket[0][0], min(y for _, y in bucket), max(y for _, y in bucket)) for bucket in finite
    ]


def _bucketed(points: Points, width: float) -> Iterator[Points]:
    for _, bucket in itertools.groupby(points, key=lambda point: point[0] // width):
        yield list(bucket)


def path(points: Points, xs: Scale, ys: Scale) -> str:
    """The `d` of a polyline that breaks off where a value is None or has no logarithm."""
    written = []
    pen_down = False
    for x, y in points:
        if y is None or (ys.log and y <= 0):
            pen_down = False
            continue
        written.append(f"{'L' if pen_down else 'M'}{xs(x):.1f},{ys(y):.1f}")
        pen_down = True
    return "".join(written)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, ascending, at least `gap` apart, inside [low, high]."""
    placed: list[float] = []
    for position in wanted:
        placed.append(max(position, placed[-1] + gap if placed else low))
    limit = high
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed


def _axes(steps: Scale, values: Scale, form: str) -> list[Markup]:
    bottom = HEIGHT - BOTTOM
    axes = []
    for value in values.ticks():
        y = values(value)
        axes.append(tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
        text = f"{100 * value:.3g} %" if form == "percent" else units.short(value)
        axes.append(tag("text", text, x=LEFT - 5, y=y + 3.5, class_="tick end"))
    for step in steps.ticks():
        axes.append(
            tag("line", class_="axis", x1=steps(step), x2=steps(step), y1=bottom, y2=bottom + 3)
        )
        label = tag("text", units.short(step), x=steps(step), y=HEIGHT - 7, class_="tick mid")
        axes.append(label)
    axes.append(tag("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom))
    axes.append(tag("text", "step", x=WIDTH - RIGHT + 20, y=HEIGHT - 7, class_="tick"))
    return axes


def _mark(mark: Mark, steps: Scale) -> Markup:
    x, bottom = steps(mark.step), HEIGHT - BOTTOM
    if mark.kind == "bad":
        cross = f"M{x - 2.5:.1f},{bottom - 5:.1f}l5,5m0,-5l-5,5"
        return tag("path", tag("title", mark.title), d=cross, class_="bad")
    return tag("line", tag("title", mark.title), x1=x, x2=x, y1=TOP, y2=bottom, class_=mark.kind)


def _curve(curve: Curve, steps: Scale, values: Scale) -> list[Markup]:
    strength = "strong" if curve.strong else "thin"
    drawn = [_band(curve.thinned.band, steps, values, curve.colour)] if curve.thinned.band else []
    drawn += [
        tag("path", d=path(points, steps, values), class_=f"line gone {curve.colour}")
        for points in curve.thinned.overwritten
    ]
    kept = path(curve.thinned.points, steps, values)
    drawn.append(tag("path", d=kept, class_=f"line {strength} {curve.colour}"))
    dots = _drawable(curve.thinned.points, values)
    if len(dots) <= (_MAX_DOTS if curve.strong else 1):
        drawn += [
            tag("circle", cx=steps(x), cy=values(y), r=2, class_=f"dot {curve.colour}")
            for x, y in dots
        ]
    return drawn


def _band(
    band: list[tuple[float, float, float]], steps: Scale, values: Scale, colour: str
) -> Markup:
    """The area between the lowest and the highest of every bucket."""
    upper = [(x, high) for x, _, high in band]
    lower = [(x, max(low, values.low)) for x, low, _ in reversed(band)]
    outline = path(upper, steps, values) + path(lower, steps, values).replace("M", "L", 1) + "Z"
    return tag("path", d=outline, class_=f"band {colour}")


def _labels(panel: Panel, steps: Scale, values: Scale) -> list[Markup]:
    """Names at the ends of the lines; the value where there is one line only."""
    ends = []
    for curve in panel.curves:
        finite = _drawable(curve.thinned.points, values)
        if finite:
            text = curve.name if len(panel.curves) > 1 else formatted(finite[-1][1], panel.form)
            ends.append((values(finite[-1][1]), text, curve.colour))
    ends.sort()
    rows = spread([y for y, _, _ in ends], _LABEL_GAP, TOP, HEIGHT - BOTTOM - 3)
    x = steps.stop + 6
    return [
        tag("text", text, x=x, y=row + 3.5, class_=f"label {colour}")
        for row, (_, text, colour) in zip(rows, ends, strict=True)
    ]


def _latest(panel: Panel) -> list[Markup]:
    written = []
    for curve in panel.curves:
        finite = _finite(curve.series.points)
        if finite:
            name = f"{curve.name} " if len(panel.curves) > 1 else ""
            text = f"{name}{formatted(finite[-1][1], panel.form)}"
            written.append(tag("span", escape(text), class_=curve.colour))
    return written


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if y is not None]


def _drawable(points: Points, values: Scale) -> list[tuple[float, float]]:
    return [(x, y) for x, y in _finite(points) if y > 0 or not values.log]
