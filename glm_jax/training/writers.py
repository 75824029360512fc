"""Where figures go: JSON lines in the run's folder, TensorBoard, Weights & Biases, the terminal."""

import contextlib
import importlib
import io
import json
import math
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from glm_jax.config import LoggingConfig
from glm_jax.errors import UserError


class Writer(Protocol):
    """A place where the lines of a run go."""

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """`kind` is train, validation or an event; `values` are numbers, strings, lists, dicts."""

    def close(self) -> None: ...


def make_writers(workdir: Path, config: LoggingConfig) -> Writer:
    """Opens `metrics.jsonl` and what the config asks for beside it.

    Args:
      workdir: folder of the run; it holds `config.json` already.

    Raises:
      UserError: a package is missing, or W&B refuses to start.
    """
    writers: list[Writer] = []
    if config.tensorboard:
        writers.append(TensorBoard(workdir))
    if config.wandb != "off":
        writers.append(WeightsAndBiases(workdir, config))
    return _FanOut([MetricsLog(workdir), *writers])


class _FanOut:
    def __init__(self, writers: Sequence[Writer]):
        self._writers = writers

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        values = json_value(values)
        for writer in self._writers:
            writer.write(step, kind, values)

    def close(self) -> None:
        with contextlib.ExitStack() as closing:
            for writer in self._writers:
                closing.callback(writer.close)


NO_WRITER: Writer = _FanOut(())
"""Of the processes of a run that are not the first."""


class MetricsLog:
    """Appends one JSON object a line to `metrics.jsonl`; a number that is not finite is null."""

    def __init__(self, workdir: Path):
        path = workdir / "metrics.jsonl"
        cut_short = _ends_within_a_line(path)
        self._file = path.open("a", buffering=1, encoding="utf-8")
        if cut_short:
            self._file.write("\n")

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        line = {"step": step, "kind": kind, "time": round(time.time(), 3)} | json_value(values)
        try:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"{self._file.name} cannot be written: {error}") from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written was said when it was
            self._file.close()


def steps_of(workdir: Path, kind: str) -> set[int]:
    """The steps for which `metrics.jsonl` has a line of this kind."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return set()
    found = set()
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            with contextlib.suppress(ValueError):  # a line that a kill cut short
                line = json.loads(text)
                if line["kind"] == kind:
                    found.add(line["step"])
    return found


def _ends_within_a_line(path: Path) -> bool:
    """Whether a process was killed as it wrote the last line."""
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, io.SEEK_END)
        return file.read() != b"\n"


class TensorBoard:
    """Event files in `<workdir>/tensorboard`: figures as scalars, events and samples as text."""

    def __init__(self, workdir: Path):
        tensorboard = _import("tensorboardX", "logging.tensorboard", "tensorboard")
        self._proto = importlib.import_module("tensorboardX.proto.event_pb2")
        # Its own name for a file has only seconds, and would overwrite that of a quick restart.
        suffix = f".{time.time_ns()}"
        self._writer = tensorboard.SummaryWriter(
            str(workdir / "tensorboard"), filename_suffix=suffix
        )

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        if kind in ("resumed", "rewound"):
            self._forget_after(step)
        if kind in ("train", "validation", "saved"):
            for name, number in _numbers(values).items():
                self._writer.add_scalar(f"{kind}/{name}", number, step)
        elif kind == "samples":
            self._writer.add_text(kind, "\n".join(map(_marked, values["filled"])), step)
        else:
            self._writer.add_text(kind, f"```\n{json.dumps(values, ensure_ascii=False)}\n```", step)

    def _forget_after(self, step: int) -> None:
        """TensorBoard hides what was written for the steps that now follow again."""
        start = self._proto.SessionLog(status=self._proto.SessionLog.START)
        event = self._proto.Event(step=step + 1, session_log=start)
        self._writer.file_writer.add_event(event, step=step + 1)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A W&B run that is the same one after a resume; its id is in `<workdir>/wandb_id`.

    It gets the numbers of every line as `<kind>/<name>` over `step`, and the config without
    secrets. Its key is W&B's own business: WANDB_API_KEY or `wandb login`.
    """

    def __init__(self, workdir: Path, config: LoggingConfig):
        wandb = _import("wandb", "logging.wandb", "wandb")
        resolved = workdir / "config.json"
        try:
            self._run = wandb.init(
                id=_stored_id(workdir),
                resume="allow",
                name=workdir.resolve().name,
                project=config.wandb_project,
                mode=config.wandb,
                dir=str(workdir),
                config=redacted(json.loads(resolved.read_text(encoding="utf-8"))),
                # The command line, the git remote and the terminal may hold secrets.
                settings=wandb.Settings(
                    console="off", disable_code=True, disable_git=True, x_disable_meta=True
                ),
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(f"config.logging.wandb is {config.wandb}: {reason}") from error
        # Steps come again after a resume or a rewind; W&B's own step cannot go back.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        if kind in ("started", "resumed"):
            self._run.config.update(redacted(values), allow_val_change=True)
        elif numbers := _numbers(values):
            self._run.log({"step": step} | {f"{kind}/{n}": v for n, v in numbers.items()})

    def close(self) -> None:
        self._run.finish()


_SECRET = re.compile("token(?!i[sz]er)|key|secret|password|credential", re.IGNORECASE)


def redacted(values: Any) -> Any:
    """JSON values with the strings of fields that are named like a secret replaced."""
    if isinstance(values, Mapping):
        return {name: redacted(_hidden(name, value)) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [redacted(value) for value in values]
    return values


def _hidden(name: str, value: Any) -> Any:
    if not _SECRET.search(name):
        return value
    if isinstance(value, list | tuple):
        return [_hidden(name, item) for item in value]
    return "(redacted)" if isinstance(value, str) and value else value


def _import(package: str, field: str, extra: str):
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"config.{field} needs {package}: pip install -e '.[{extra}]' in the clone"
        ) from error


def _stored_id(workdir: Path) -> str:
    path = workdir / "wandb_id"
    if not path.exists():
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()


def json_value(value: Any) -> Any:
    """A value that JSON can write: None for what is not finite, lists for arrays."""
    if isinstance(value, Mapping):
        return {str(name): json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode(errors="replace").decode()  # no lone surrogates: a file takes none
    if value is None or isinstance(value, int):
        return value
    return json_value(value.tolist())  # of NumPy or JAX


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _marked(parts: Sequence[str]) -> str:
    """A filled text in Markdown, its answers bold."""
    return "* " + "".join(f"**{part}**" if i % 2 else part for i, part in enumerate(parts))


class Display:
    """A progress bar with the time left on a terminal, a plain line per report elsewhere."""

    def __init__(self, steps: int, *, shows: bool = True):
        """`shows` is False for processes that are not the first."""
        self._console = Console(quiet=not shows)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("train", total=steps, figures="")
        self._steps = steps

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def start(self, step: int) -> None:
        """Counts from `step` on."""
        self._progress.update(self._task, completed=step)

    def report(self, step: int, kind: str, figures: Mapping[str, Any]) -> None:
        """Shows overall figures and the losses of the groups; `metrics.jsonl` has all of them."""
        if kind == "train" and self._console.is_terminal:
            loss = figures.get("loss", math.nan)  # none where every step of the window was bad
            few = f"loss {loss:.4g}  {figures.get('tokens_per_second', 0):,.0f} tokens/s"
            self._progress.update(self._task, completed=step, figures=few)
        elif kind in ("train", "validation", *_PLAIN_EVENTS):
            shown = {
                name: value
                for name, value in figures.items()
                if ("/" not in name or name.startswith("loss/"))
                and name not in _NOT_SHOWN
                and not isinstance(value, Mapping)
            }
            text = "  ".join(f"{name} {_short(value)}" for name, value in shown.items())
            line = f"{kind:>10} {step}/{self._steps}  {text}"
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)


_SHOWN = 3  # entries of a list
# What goodput is made of; a line of it ends the session.
_NOT_SHOWN = ("seconds", "skipped_seconds", "compile_seconds", "lost_seconds", "wall_seconds")
_PLAIN_EVENTS = ("bad_step", "fallback", "rewound", "slow_host", "stage", "stopped")


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > _SHOWN:
        return f"{', '.join(map(_short, value[:_SHOWN]))} and {len(value) - _SHOWN} others"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
