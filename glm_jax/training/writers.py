"""Where figures go: JSON lines in the run's folder, and the terminal."""

import json
import math
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class MetricsLog:
    """Appends one JSON object a line to `metrics.jsonl`."""

    def __init__(self, workdir: Path):
        self._file = (workdir / "metrics.jsonl").open("a", buffering=1)

    def write(self, step: int, kind: str, figures: dict[str, float]) -> None:
        """`kind` is train, validation or resumed; a figure that is not finite becomes null."""
        line = {"step": step, "kind": kind, "time": round(time.time(), 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()


class Display:
    """A progress bar with the time left on a terminal, a plain line per report elsewhere."""

    def __init__(self, steps: int, start: int):
        self._console = Console()
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("train", total=steps, completed=start, figures="")
        self._steps = steps

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def report(self, step: int, kind: str, figures: dict[str, float]) -> None:
        """Shows overall figures and the losses of the groups; `metrics.jsonl` has all of them."""
        shown = {n: v for n, v in figures.items() if "/" not in n or n.startswith("loss/")}
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if kind == "train" and self._console.is_terminal:
            few = f"loss {figures['loss']:.4g}  {figures.get('tokens_per_second', 0):,.0f} tokens/s"
            self._progress.update(self._task, completed=step, figures=few)
        else:
            line = f"{kind:>10} {step}/{self._steps}  {text}"
            self._console.print(line, highlight=False, soft_wrap=True)
