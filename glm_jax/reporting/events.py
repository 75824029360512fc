"""What happened in a run, in words."""

from collections.abc import Mapping
from typing import Any

from glm_jax.reporting import units
from glm_jax.reporting.history import Line, as_number

NAMES = {
    "started": "started",
    "resumed": "resumed",
    "bad_step": "bad step",
    "saved": "checkpoint saved",
    "save_failed": "save failed",
    "fallback": "fell back",
    "diverged": "diverged",
    "slow_host": "slow host",
    "rewound": "rewound",
    "stage": "stage",
    "stopped": "stopped",
}


def describe(line: Line) -> str:
    """The particulars of an event as one sentence; of an unknown kind, its values."""
    describer = _DESCRIBERS.get(line.kind, lambda line: _listed(line.values))
    return describer(line)


def rows(values: Any) -> str:
    """[first, end) as people count: 0–255."""
    if not isinstance(values, list) or len(values) != 2:
        return units.NOTHING
    first, end = map(as_number, values)
    if first is None or end is None:
        return units.NOTHING
    return f"{first:,.0f}–{end - 1:,.0f}"


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """How the surroundings of two sessions differ: versions, devices, mesh."""
    found = []
    for name in ("versions", "device", "num_devices", "num_processes", "mesh", "num_params"):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [
                f"{item} {old.get(item, 'none')} → {new.get(item, 'none')}"
                for item in sorted(old.keys() | new.keys())
                if old.get(item) != new.get(item)
            ]
        elif old is not None and new is not None and old != new:
            found.append(f"{name.replace('_', ' ')} {old} → {new}")
    return found


def machine(values: Mapping[str, Any]) -> str:
    """Devices and mesh of a session."""
    device = str(values.get("device", "unknown device"))
    count = as_number(values.get("num_devices"))
    mesh = f", mesh {values['mesh']}" if "mesh" in values else ""
    return f"{count:,.0f} × {device}{mesh}" if count else f"{device}{mesh}"


def _started(line: Line) -> str:
    params = line.number("num_params")
    return machine(line.values) + (f", {units.amount(params)} parameters" if params else "")


def _resumed(line: Line) -> str:
    return f"from step {line.step:,}, row {units.number(line.number('next_row'))}"


def _bad_step(line: Line) -> str:
    figures = f"loss {units.number(line.number('loss'))}, "
    figures += f"gradient norm {units.number(line.number('grad_norm'))}"
    reason = line.values.get("reason", "unknown reason")
    where = f"rows {rows(line.values.get('rows'))}"
    documents = line.values.get("documents")
    if isinstance(documents, list) and documents:
        where += f" ({documents[0]}{' and others' if len(documents) > 1 else ''})"
    return f"{reason}: {figures}; {where}"


def _saved(line: Line) -> str:
    seconds = line.number("seconds")
    return "" if seconds is None else f"in {units.duration(seconds)}"


def _fallback(line: Line) -> str:
    bad = units.number(line.number("bad_step"))
    reason, moved = line.values.get("reason", "unknown reason"), line.values.get("moved_to")
    return f"checkpoint of step {bad} set aside: {reason}" + (f"; now {moved}" if moved else "")


def _rewound(line: Line) -> str:
    skipped = rows(line.values.get("skipped_rows"))
    return f"from step {units.number(line.number('from_step'))}; left out: rows {skipped}"


def _stage(line: Line) -> str:
    values = line.values
    shares = values.get("shares")
    parts = [str(values.get("name", "unnamed"))]
    parts += [f"{values.get(name)} {unit}" for name, unit in _STAGE_UNITS.items() if name in values]
    if isinstance(shares, Mapping):
        kinds = ((kind, as_number(share)) for kind, share in shares.items())
        parts += [f"{kind} {share:.1%}" for kind, share in kinds if share is not None]
    return ", ".join(parts)


_STAGE_UNITS = {"batch_size": "rows a batch", "seq_length": "slots a row"}


def _stopped(line: Line) -> str:
    reason = line.values.get("reason", "no reason given")
    share = line.number("goodput")
    goodput = f"; goodput of the session {units.percent(share)}" if share else ""
    return ("all steps done" if reason == "done" else str(reason)) + goodput


def _reason(line: Line) -> str:
    return str(line.values.get("reason", "no reason given"))


def _slow_host(line: Line) -> str:
    share = line.number("input_wait")
    return f"{line.values.get('process')} waits for rows {units.percent(share or 0.0)} of the time"


_DESCRIBERS = {
    "slow_host": _slow_host,
    "save_failed": _reason,
    "diverged": _reason,
    "started": _started,
    "resumed": _resumed,
    "bad_step": _bad_step,
    "saved": _saved,
    "fallback": _fallback,
    "rewound": _rewound,
    "stage": _stage,
    "stopped": _stopped,
}


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
