"""The run over the clock: steps done, and beneath them a lane for each kind of event."""

import dataclasses
from collections.abc import Sequence

from glm_jax.reporting import units
from glm_jax.reporting.charts import path
from glm_jax.reporting.events import NAMES, describe
from glm_jax.reporting.history import History, Line, Points, taken_back_to
from glm_jax.reporting.markup import Markup, tag
from glm_jax.reporting.scales import Scale

_LANES = {
    "started": "started",
    "resumed": "resumed",
    "stage": "stages",
    "saved": "saved",
    "save_failed": "not saved",
    "bad_step": "bad steps",
    "rewound": "rewound",
    "fallback": "fell back",
    "diverged": "diverged",
    "slow_host": "slow host",
    "stopped": "stopped",
}
_BEGINNINGS = ("started", "fallback", "resumed", "rewound")
_LEFT, _RIGHT, _TOP, _LANE, _AXIS = 92, 12, 8, 17, 24
_POINTS = 300  # of a drawn stretch
_HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class Size:
    """Width and height of the part above the lanes."""

    width: int
    height: int


WIDE, NARROW = Size(1180, 150), Size(380, 120)


def draw_timeline(history: History, size: Size, style: str) -> Markup:
    """The chart; `style` is the class that says on which screens it is shown."""
    first, last = history.lines[0].time, max(line.time for line in history.lines)
    hours = Scale(0, max((last - first) / _HOUR, 1e-3), _LEFT, size.width - _RIGHT)
    lanes = [kind for kind in _LANES if any(line.kind == kind for line in history.lines)]
    top_step = max(1, *(line.step for line in history.lines))
    steps = Scale(0, top_step, _TOP + size.height, _TOP)
    bottom = _TOP + size.height + _LANE * len(lanes) + 4
    return tag(
        "svg",
        tag("title", "Steps done and events over time"),
        _step_axis(steps, size),
        _time_axis(hours, bottom),
        [_stretch(s, first, hours, steps) for s in _stretches(history.lines)],
        [
            _lane(history, kind, steps.start + _LANE * (i + 1), first, hours)
            for i, kind in enumerate(lanes)
        ],
        viewBox=f"0 0 {size.width} {bottom + _AXIS}",
        role="img",
        class_=style,
    )


def _step_axis(steps: Scale, size: Size) -> list[Markup]:
    axis = []
    for step in steps.ticks(3):
        y = steps(step)
        axis.append(tag("line", class_="grid", x1=_LEFT, x2=size.width - _RIGHT, y1=y, y2=y))
        text = f"step {units.short(step)}" if step else "0"
        axis.append(tag("text", text, x=_LEFT - 6, y=y + 3.5, class_="tick end"))
    return axis


def _time_axis(hours: Scale, bottom: float) -> list[Markup]:
    unit, factor = _time_unit(hours.high)
    scaled = Scale(0, hours.high * factor, hours.start, hours.stop)
    axis = [tag("line", class_="axis", x1=_LEFT, x2=hours.stop, y1=bottom, y2=bottom)]
    for tick in scaled.ticks(8 if hours.stop > 600 else 3):
        x = scaled(tick)
        axis.append(tag("line", class_="axis", x1=x, x2=x, y1=bottom, y2=bottom + 3))
        text = f"{units.short(tick)} {unit}"
        axis.append(tag("text", text, x=x, y=bottom + 15, class_="tick mid"))
    return axis


def _time_unit(hours: float) -> tuple[str, float]:
    if hours >= 72:
        return "d", 1 / 24
    if hours >= 1.5:
        return "h", 1.0
    return ("min", 60.0) if hours >= 0.05 else ("s", _HOUR)


def _stretches(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines from one beginning, of a session or after a rewind, to the next."""
    stretches: list[list[Line]] = []
    for line in lines:
        if line.kind in _BEGINNINGS or not stretches:
            stretches.append([])
        stretches[-1].append(line)
    return stretches


def _stretch(stretch: Sequence[Line], first: float, hours: Scale, steps: Scale) -> list[Markup]:
    def points(lines: Sequence[Line]) -> Points:
        some = [*lines[:: max(1, len(lines) // _POINTS)], *lines[-1:]]
        return [((line.time - first) / _HOUR, _reached(line)) for line in some]

    kept = [line for line in stretch if line.overwritten is None]
    gone = kept[-1:] + [line for line in stretch if line.overwritten is not None]
    return [
        tag("path", d=path(points(gone), hours, steps), class_="line gone ink"),
        tag("path", d=path(points(kept), hours, steps), class_="line strong ink"),
    ]


def _reached(line: Line) -> int:
    return taken_back_to(line) if line.kind == "rewound" else line.step


def _lane(history: History, kind: str, y: float, first: float, hours: Scale) -> list[Markup]:
    lines = [line for line in history.lines if line.kind == kind]
    label = f"{_LANES[kind]} {len(lines)}"
    drawn = [
        tag("line", class_="grid", x1=_LEFT, x2=hours.stop, y1=y, y2=y),
        tag("text", label, x=_LEFT - 6, y=y + 3.5, class_="tick end"),
    ]
    for line in lines:
        x = hours((line.time - first) / _HOUR)
        title = tag(
            "title", ", ".join(filter(None, [f"step {line.step:,}", NAMES[kind], describe(line)]))
        )
        drawn.append(tag("path", title, d=f"M{x:.1f},{y - 5:.1f}v10", class_=f"event {kind}"))
    return drawn
