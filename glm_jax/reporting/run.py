"""All that a run's folder holds for a report."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from glm_jax.errors import UserError
from glm_jax.reporting.history import History, read_history, read_json_lines
from glm_jax.training.writers import redacted


class Health(Protocol):
    """What is known of a checkpoint; `glm_jax.training.health` finds it out."""

    step: int
    good: bool
    reason: str
    bytes: int
    saved_at: float | None


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its files tell it.

    Attributes:
      config: resolved, as nested dicts, without secrets.
      evaluations: what `evaluate` printed, one object a line of `evaluations.jsonl`.
    """

    name: str
    config: dict[str, Any]
    history: History
    evaluations: list[dict]
    health: Sequence[Health]

    @property
    def surroundings(self) -> Mapping[str, Any]:
        """Versions, devices, mesh and parameter count of the last session."""
        sessions = [line for line in self.history.lines if line.kind in ("started", "resumed")]
        return sessions[-1].values if sessions else {}


def read_run(workdir: Path, health: Callable[[Path], Sequence[Health]]) -> Run:
    """Reads a run's folder; only `config.json` has to be there.

    Args:
      health: finds out the health of the folder's checkpoints.

    Raises:
      UserError: it is not, or it holds no JSON object.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(f"{workdir} holds no run: {path} is missing")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no JSON object")
    return Run(
        name=workdir.resolve().name,
        config=redacted(config),
        history=read_history(workdir / "metrics.jsonl"),
        evaluations=read_json_lines(workdir / "evaluations.jsonl")[0],
        health=sorted(health(workdir), key=lambda checkpoint: checkpoint.step),
    )
