"""Which charts a report shows."""

import dataclasses
from collections.abc import Mapping, Sequence

from glm_jax.batch import OBJECTIVES
from glm_jax.reporting.charts import Curve, Mark, Panel
from glm_jax.reporting.events import describe
from glm_jax.reporting.history import History
from glm_jax.training.metrics import SOURCE
from glm_jax.training.speed import USEFUL

_PALETTE = ("blue", "orange", "green", "purple", "sky")
_LOSS_NOTE = (
    "Nats per target. Dots: validation; thin: training. One scale for all. Dotted verticals: "
    "resumed; dashed: rewound; solid: a stage begins; crosses: bad steps, which were skipped. "
    "Faint dashed curves: steps that a resume or a rewind overwrote."
)
_ANSWERS_NOTE = "Share of validation blanks with every token right, given the true tokens before."
_MACHINERY_NOTE = (
    "Of training. Where a pixel stands for several values, the line is their median and the band "
    "reaches from the lowest to the highest."
)
_MFU_NOTE = f" MFU: ({USEFUL}) / seconds / devices / peak."
_MARKED = {"resumed": "resumed", "rewound": "rewound", "bad_step": "bad", "stage": "stage"}


@dataclasses.dataclass(frozen=True)
class PanelGroup:
    """Panels under one heading; `shared` ones have the same axis of values."""

    title: str
    note: str
    panels: Sequence[Panel]
    shared: bool = False


def choose(history: History) -> list[PanelGroup]:
    """The groups in page order, without panels that nothing was logged for."""
    kinds = history.groups("loss")
    objectives = [name for name in OBJECTIVES if name in kinds]
    sources = [name for name in kinds if name.startswith(SOURCE)]
    languages = [name for name in kinds if name not in (*objectives, *sources)]
    colours = dict(zip(languages + objectives + sources, _PALETTE * len(kinds), strict=False))
    losses = [_loss(history, "all", "loss", "ink")]
    losses += [
        _loss(history, name.removeprefix(SOURCE), f"loss/{name}", colours[name])
        for name in languages + objectives + sources
    ]
    answers = [
        _answers(history, "exact match by language", languages, colours),
        _answers(history, "exact match by objective", objectives, colours),
    ]
    machinery_note = _MACHINERY_NOTE
    if history.series("train", "mfu").points:
        machinery_note += _MFU_NOTE
    return [
        PanelGroup(
            "Loss",
            _LOSS_NOTE,
            _with_values(losses),
            shared=True,
        ),
        PanelGroup(
            "Answers",
            _ANSWERS_NOTE,
            _with_values(answers),
            shared=True,
        ),
        PanelGroup("Optimisation and speed", machinery_note, _with_values(_machinery(history))),
    ]


def marks(history: History) -> list[Mark]:
    """The events that the panels show at their steps."""
    return [
        Mark(line.step, _MARKED[line.kind], f"step {line.step:,}: {describe(line)}")
        for line in history.events
        if line.kind in _MARKED
    ]


def _loss(history: History, title: str, name: str, colour: str) -> Panel:
    curves = [
        Curve("train", history.series("train", name), f"{colour} light"),
        Curve("valid.", history.series("validation", name), colour, strong=True),
    ]
    return Panel(title, "nats per target", curves, log_from=4.0)


def _answers(
    history: History, title: str, groups: Sequence[str], colours: Mapping[str, str]
) -> Panel:
    named = [("all", "exact_match", "ink")]
    named += [(group, f"exact_match/{group}", colours[group]) for group in groups]
    curves = [
        Curve(name, history.series("validation", key), colour, strong=True)
        for name, key, colour in named
    ]
    return Panel(title, "share of blanks", curves, form="percent", log_from=float("inf"), zero=True)


def _machinery(history: History) -> list[Panel]:
    def panel(title: str, unit: str, name: str, **options) -> Panel:
        return Panel(title, unit, [Curve(title, history.series("train", name), "ink")], **options)

    linear = {"log_from": float("inf"), "zero": True}
    return [
        panel("learning rate", "per update", "learning_rate", **linear),
        panel("gradient norm", "before clipping", "grad_norm", log_from=10.0),
        panel("gradient noise scale", "rows", "gradient_noise_scale", form="si", log_from=10.0),
        panel("throughput", "tokens/s", "tokens_per_second", form="si", **linear),
        panel("MFU", "share of the peak, useful FLOPs", "mfu", form="percent", **linear),
        panel("waiting for input", "share of time", "input_wait", form="percent", **linear),
        panel("padding", "share of slots", "padding", form="percent", **linear),
    ]


def _with_values(panels: Sequence[Panel]) -> list[Panel]:
    return [panel for panel in panels if any(True for _ in panel.values())]
