"""Reports on a run: `python -m glm_jax.report --workdir=RUN [--out=FILE]`.

One HTML page with the curves, events, sample fills, config and the health of every checkpoint; it
loads nothing, so it can be mailed. A run that is still training can be reported on too.
"""

import time
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from glm_jax import cli
from glm_jax.errors import UserError
from glm_jax.reporting import units
from glm_jax.reporting.overview import Overview, overview
from glm_jax.reporting.page import render
from glm_jax.reporting.run import Run, read_run
from glm_jax.training.health import health

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("out", None, "File to write; by default report.html in the run's folder.")


def main() -> None:
    workdir = Path(cli.required("workdir"))
    report(workdir, Path(FLAGS.out) if FLAGS.out else workdir / "report.html")


def report(workdir: Path, out: Path) -> None:
    """Writes the page and prints a summary.

    Raises:
      UserError: `workdir` holds no run, or `out` cannot be written.
    """
    with Console(stderr=True).status("reading the checkpoints"):
        run = read_run(workdir, health)
    now = time.time()
    figures = overview(run.history, run.config, now)
    _write(out, render(run, figures, now))
    Console().print(_summary(run, figures))
    print(out)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.incomplete")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error}") from error


def _summary(run: Run, figures: Overview) -> Table:
    best, bad = figures.best, [c.step for c in run.health if not c.good]
    rows = {
        run.name: f"{figures.state}, {figures.why}",
        "step": f"{figures.step:,} of {figures.steps:,}",
        "tokens seen": units.amount(figures.tokens),
        "wall time": units.duration(figures.goodput.wall),
        "goodput": figures.goodput.describe(),
        "best validation loss": f"{units.number(best[0])} at step {best[1]:,}" if best else "none",
        "bad steps": f"{sum(line.kind == 'bad_step' for line in run.history.lines):,}",
        "checkpoints": f"{len(run.health) - len(bad)} good"
        + (f", not good: {', '.join(map(str, bad))}" if bad else ""),
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, value)
    return table


if __name__ == "__main__":
    cli.run(main, define_flags)
