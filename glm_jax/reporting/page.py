"""The report as one HTML page that loads nothing."""

import base64
import hashlib
import importlib.resources
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from glm_jax.reporting import charts, panels, tables, units
from glm_jax.reporting.events import machine
from glm_jax.reporting.history import History, as_number
from glm_jax.reporting.markup import Markup, join, tag
from glm_jax.reporting.overview import Overview
from glm_jax.reporting.panels import PanelGroup
from glm_jax.reporting.run import Run
from glm_jax.reporting.timeline import NARROW, WIDE, draw_timeline
from glm_jax.training import speed


def render(run: Run, overview: Overview, now: float) -> str:
    """The page; `now` is when the report was made, in Unix seconds."""
    groups = panels.choose(run.history)
    body = [
        _header(run, overview),
        _time(run.history, overview),
        *_charts(groups, run.history, overview.step),
        _section("Validation", _validation(run.history, overview)),
        _section("Samples", *tables.samples(run.history)),
        _section("Evaluations", _evaluations(run)),
        _section("Checkpoints", tables.checkpoints(run.health) if run.health else None),
        _section("Events", *(tables.events(run.history) if run.history.events else [])),
        _section("Versions and devices", *_surroundings(run)),
        _section("Config", *tables.config_sections(run.config)),
        _footer(run, now),
    ]
    return _document(f"{run.name}: {overview.state}", body, groups, overview.step)


def _document(
    title: str, body: Sequence[Markup | None], groups: Sequence[PanelGroup], last_step: int
) -> str:
    script, style = _asset("page.js"), _asset("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    axis = charts.step_scale(last_step)
    data = {
        "axis": {"high": axis.high, "start": axis.start, "stop": axis.stop, "width": charts.WIDTH},
        "panels": [panel.data() for group in groups for panel in group.panels],
    }
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
    ]
    scripts = [
        tag("script", _json(data), type="application/json", id="figures"),
        tag("script", script),
    ]
    page = tag("html", tag("head", head), tag("body", tag("main", body), scripts), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _header(run: Run, overview: Overview) -> Markup:
    step = f"{overview.step:,} of {overview.steps:,}"
    done = overview.step / overview.steps if overview.steps else 0.0
    best = overview.best
    keys = [
        ("step", step, f"{units.percent(done)} done"),
        ("tokens seen", units.amount(overview.tokens), "slots that hold a token"),
        (
            "wall time",
            units.duration(overview.goodput.wall),
            f"goodput {units.percent(overview.goodput.share)}",
        ),
        (
            "best validation loss",
            units.number(best[0] if best else None),
            f"nats per target, step {best[1]:,}" if best else "not validated yet",
        ),
        ("rate", f"{units.amount(overview.rate)} tokens/s", "median over the run"),
        *_mfu(run, overview),
    ]
    return tag(
        "header",
        tag(
            "h1",
            run.name,
            tag("span", overview.state, class_=f"state {overview.state}"),
            tag("small", overview.why),
        ),
        tag("div", tag("div", style=f"width:{100 * min(1.0, done):.2f}%"), class_="progress"),
        tag(
            "dl",
            [
                tag("div", tag("dt", name), tag("dd", value), tag("dd", note, class_="note"))
                for name, value, note in keys
            ],
            class_="keys",
        ),
    )


def _mfu(run: Run, overview: Overview) -> list[tuple[str, str, str]]:
    """A tile for MFU with what it is a share of, where the run has any."""
    if overview.mfu is None:
        return []
    peak = units.number(as_number(run.surroundings.get("peak_tflops")))
    note = f"median, of {peak} TFLOP/s a device: {speed.USEFUL}"
    return [("MFU", units.percent(overview.mfu), note)]


def _time(history: History, overview: Overview) -> Markup | None:
    if not history.lines:
        return None
    began = units.moment(history.lines[0].time)
    return _section(
        "Time",
        tag("p", f"Steps over the clock, from {began}. Faint: steps that were overwritten later."),
        draw_timeline(history, WIDE, "timeline wide"),
        draw_timeline(history, NARROW, "timeline narrow"),
        *_shares(overview),
    )


def _shares(overview: Overview) -> list[Markup]:
    """A bar of where the wall time went, and its key."""
    bar, key = [], []
    wall = overview.goodput.wall
    for i, (name, seconds) in enumerate(overview.goodput.spent.items()):
        if seconds > 0 and wall:
            colour, share = f"share{i}", units.percent(seconds / wall)
            bar.append(tag("span", style=f"flex-grow:{seconds:.3f}", class_=colour, title=name))
            spent = tag("b", units.duration(seconds))
            key.append(tag("li", tag("i", class_=colour), f"{name} ", spent, f" ({share})"))
    return [tag("div", bar, class_="shares"), tag("ul", key, class_="shares-key")]


def _charts(
    groups: Sequence[PanelGroup], history: History, last_step: int
) -> Iterator[Markup | None]:
    """A section for each group; panels are numbered through, as in the data of the script."""
    steps, marks = charts.step_scale(last_step), panels.marks(history)
    number = 0
    for group in groups:
        shared = charts.value_scale(group.panels) if group.shared and group.panels else None
        drawn = []
        for panel in group.panels:
            values = shared or charts.value_scale([panel])
            drawn.append(charts.draw(panel, steps, values, marks, number))
            number += 1
        grid = tag("div", drawn, class_="panels") if drawn else None
        yield _section(group.title, tag("p", group.note) if drawn else None, grid)


def _validation(history: History, overview: Overview) -> Markup | None:
    lines = history.of("validation")
    if not lines:
        return None
    best_step = overview.best[1] if overview.best else None
    shown = {line.step: line for line in lines if line.step in (best_step, lines[-1].step)}
    names = {best_step: "best"} | {lines[-1].step: "last"}
    if best_step == lines[-1].step:
        names[best_step] = "last and best"
    return _side_by_side(
        tag("div", tag("h3", f"{names[step]}, step {step:,}"), tables.figures(line.values))
        for step, line in shown.items()
    )


def _evaluations(run: Run) -> Markup | None:
    """One table for each line, the newest first."""
    written = []
    for values in reversed(run.evaluations):
        about = {name: value for name, value in values.items() if isinstance(value, str)}
        figures = {n: v for n, v in values.items() if n not in {"step", "flags", *about}}
        step = f"step {units.number(as_number(values.get('step')))}"
        heading = ", ".join([*about.values(), *_flags(values.get("flags")), step])
        written.append(tag("div", tag("h3", heading), tables.figures(figures)))
    return _side_by_side(written)


def _flags(values: Any) -> list[str]:
    """The flags of an evaluation in words, such as "ema" and "limit 100"."""
    named = values.items() if isinstance(values, dict) else ()
    return [
        name.replace("_", " ") + ("" if value is True else f" {value}") for name, value in named
    ]


def _side_by_side(parts: Iterable[Markup]) -> Markup | None:
    written = join(parts)
    return tag("div", written, class_="side") if written else None


def _surroundings(run: Run) -> list[Markup]:
    about = run.surroundings
    if not about:
        return []
    versions = about.get("versions")
    params = as_number(about.get("num_params"))
    values = [
        ("devices", machine(about)),
        ("parameters", f"{params:,.0f}" if params else units.NOTHING),
        *((str(k), str(v)) for k, v in (versions if isinstance(versions, dict) else {}).items()),
    ]
    return [tables.named_values(values)]


def _footer(run: Run, now: float) -> Markup:
    left_out = run.history.unreadable
    lines = "line" if left_out == 1 else "lines"
    note = f" {left_out} unreadable {lines} of metrics.jsonl left out." if left_out else ""
    return tag("footer", tag("p", f"Made {units.moment(now)} by glm_jax.report.{note}"))


def _section(title: str, *content: Markup | None) -> Markup | None:
    """A section, or nothing where it would be empty."""
    if not any(content):
        return None
    return tag("section", tag("h2", title), *content)


def _json(value) -> Markup:
    """JSON that cannot end the script element it is in."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("&", "\\u0026"))


def _asset(name: str) -> Markup:
    folder = importlib.resources.files(__package__)
    return Markup(folder.joinpath(name).read_text(encoding="utf-8"))
