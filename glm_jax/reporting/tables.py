"""The parts of the page that are tables: figures, samples, events, checkpoints, config."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from glm_jax import config as defaults
from glm_jax.language import detect_language
from glm_jax.reporting import units
from glm_jax.reporting.events import NAMES, changes, describe
from glm_jax.reporting.history import History, Line, as_number
from glm_jax.reporting.markup import Markup, join, table, tag
from glm_jax.reporting.run import Health

_SHARES = ("accuracy", "exact_match", "padding")
_MAX_FILLS = 8  # rows of a sample text that are not folded away
_MAX_CONTEXT = 160  # characters between two answers
_MAX_EVENTS = 40


def figures(values: Mapping[str, Any]) -> Markup | None:
    """Figures such as loss/zh as a table: a row for each group, a column for each figure."""
    cells = dict(_by_group(values))
    if not cells:
        return None
    columns = Counter(name for name, _ in cells)
    names = sorted(columns, key=lambda name: -columns[name])
    groups = list(dict.fromkeys(group for _, group in cells))
    rows = [
        [
            tag("th", group, scope="row"),
            *(_figure(name, cells.get((name, group))) for name in names),
        ]
        for group in groups
    ]
    return table(["", *(name.replace("_", " ") for name in names)], rows, class_="figures")


def samples(history: History) -> list[Markup]:
    """For each text a table of how it was filled over the steps; equal fills share a row."""
    fills: dict[tuple[str, ...], list[tuple[int, list[str]]]] = {}
    for line in history.of("samples"):
        for parts in _filled(line):
            fills.setdefault(tuple(parts[::2]), []).append((line.step, parts))
    return [_sample_table(versions) for versions in fills.values()]


def events(history: History) -> list[Markup]:
    """What happened, in order; the oldest rows are folded where there are many."""
    rows = list(_event_rows(history))
    recent = table(["when", "step", "event", ""], rows[-_MAX_EVENTS:], class_="events")
    older = rows[:-_MAX_EVENTS]
    if not older:
        return [recent]
    folded = table(["when", "step", "event", ""], older, class_="events")
    return [_folded(f"{len(older)} earlier events", folded), recent]


def checkpoints(health: Sequence[Health]) -> Markup:
    """The checkpoints on disk and whether their files are what was written."""
    rows = [
        [
            tag("td", f"{checkpoint.step:,}", class_="number"),
            units.moment(checkpoint.saved_at),
            tag("td", units.size(checkpoint.bytes), class_="number"),
            tag("td", "✓ good", class_="good")
            if checkpoint.good
            else tag("td", f"✗ {checkpoint.reason}", class_="damaged"),
        ]
        for checkpoint in health
    ]
    return table(["step", "saved", "size", "files"], rows, class_="checkpoints")


def config_sections(config: Mapping[str, Any]) -> list[Markup]:
    """The resolved config, a folded table a section; fields that differ from defaults stand out."""
    known = defaults.default_dict()
    single = {name: value for name, value in config.items() if not isinstance(value, Mapping)}
    sections = {"run": (single, known)} | {
        name: (value, known.get(name, {}))
        for name, value in config.items()
        if isinstance(value, Mapping)
    }
    return [_section(name, *section) for name, section in sections.items()]


def named_values(values: Iterable[tuple[str, str]]) -> Markup:
    """A definition list."""
    return tag("dl", [[tag("dt", name), tag("dd", value)] for name, value in values])


def _by_group(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], float]]:
    """((figure, group), value) for loss/zh as well as for {"exact_match": {"zh": ...}}."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            for (group, inner), number in _by_group(value):
                yield (name, group if inner == "all" else f"{group}/{inner}"), number
        elif as_number(value) is not None:
            figure, _, group = name.partition("/")
            yield (figure, group or "all"), value


def _figure(name: str, value: float | None) -> Markup:
    text = units.percent(value) if name in _SHARES else units.number(value)
    return tag("td", "" if value is None else text, class_="number")


def _filled(line: Line) -> list[list[str]]:
    filled = line.values.get("filled")
    texts = filled if isinstance(filled, list) else []
    return [
        parts
        for parts in texts
        if isinstance(parts, list) and parts and all(isinstance(part, str) for part in parts)
    ]


def _sample_table(versions: list[tuple[int, list[str]]]) -> Markup:
    rows = []
    for parts, group in itertools.groupby(versions, key=lambda version: version[1]):
        steps = [step for step, _ in group]
        rows.append([tag("td", _step_range(steps), class_="number"), _marked(parts)])
    older, recent = rows[:-_MAX_FILLS], rows[-_MAX_FILLS:]
    head = ["step", "filled"]
    folded = (
        _folded(f"{len(older)} earlier answers", table(head, older, class_="samples"))
        if older
        else None
    )
    return tag("div", folded, table(head, recent, class_="samples"), class_="sample")


def _step_range(steps: list[int]) -> str:
    return f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} – {steps[-1]:,}"


def _marked(parts: list[str]) -> Markup:
    pieces = [tag("mark", part) if i % 2 else _elided(part) for i, part in enumerate(parts)]
    language = "zh-Hans" if detect_language("".join(parts)) == "zh" else "en"
    return tag("td", pieces, lang=language)


def _elided(context: str) -> str:
    if len(context) <= _MAX_CONTEXT:
        return context
    return f"{context[: _MAX_CONTEXT // 2]} … {context[-_MAX_CONTEXT // 2 :]}"


def _event_rows(history: History) -> Iterator[list[Markup | str]]:
    surroundings: Mapping[str, Any] = {}
    for kind, group in itertools.groupby(history.events, key=lambda line: line.kind):
        lines = list(group)
        if kind == "saved" and len(lines) > 1:
            yield _saved_row(lines)
            continue
        for line in lines:
            detail = describe(line)
            if kind in ("started", "resumed"):
                differing = changes(surroundings, line.values)
                detail = "; ".join([detail, *differing])
                surroundings = line.values
            yield _event_row(line, f"{line.step:,}", NAMES.get(kind, kind), detail)


def _saved_row(lines: list[Line]) -> list[Markup | str]:
    seconds = [s for s in (line.number("seconds") for line in lines) if s is not None]
    detail = f"in {units.duration(sum(seconds) / len(seconds))} each" if seconds else ""
    steps = _step_range([line.step for line in lines])
    return _event_row(lines[0], steps, f"{len(lines)} checkpoints saved", detail)


def _event_row(line: Line, steps: str, name: str, detail: str) -> list[Markup | str]:
    return [
        tag("td", units.moment(line.time), class_="when"),
        tag("td", steps, class_="number"),
        tag(
            "td",
            tag("i", class_=f"event {line.kind}" if line.kind in NAMES else "event"),
            name,
            class_="what",
        ),
        detail,
    ]


def _section(name: str, values: Mapping[str, Any], known: Mapping[str, Any]) -> Markup:
    rows, differing = [], 0
    for field, value in values.items():
        default = known.get(field)
        shown = [tag("th", field, scope="row"), tag("td", _value(value))]
        if field in known and _plain(value) == _plain(default):
            rows.append(tag("tr", shown))
        else:
            differing += 1
            note = f"default {_value(default)}" if field in known else "unknown to this version"
            rows.append(tag("tr", shown, tag("td", note), class_="differs"))
    count = f"{differing} of {len(values)} differ from the defaults" if differing else "defaults"
    body = tag("table", tag("tbody", rows), class_="config")
    return _folded(join(tag("b", name), " ", tag("small", count)), body)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_value(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value != "" else "empty"


def _folded(summary: str, content: Markup) -> Markup:
    return tag("details", tag("summary", summary), content)
