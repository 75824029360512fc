"""Evaluates a checkpoint: `python -m glm_jax.evaluate --workdir=RUN [--task=T --input=F]`.

Tasks (docs/evaluation.md has the file formats and formulas):
  loss     the objective's own figures on the validation split of the run's data
  bpb      bits per byte of documents
  lambada  the last word of passages
  cloze    multiple choice in a blank
  fill     blanks that greedy decoding fills exactly
  harness  tasks of lm-evaluation-harness

The last line of the output is one JSON object; the run's evaluations.jsonl gets it too.
"""

import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import track

from glm_jax import cli
from glm_jax.config import Config
from glm_jax.data.dataset import equal_batches, open_dataset
from glm_jax.errors import UserError
from glm_jax.model.decoding import DecodingOptions, Filler
from glm_jax.model.scoring import Scorer
from glm_jax.parallel.sharding import Sharding, make_sharding
from glm_jax.parallel.watch import COMPILING, Watch, watched
from glm_jax.stages import longest_row
from glm_jax.tasks import bpb, cloze, fill, lambada, loss
from glm_jax.tasks.continuation import document_mask
from glm_jax.tokenizer import Tokenizer
from glm_jax.training.evaluation import check_validation_batch, make_validation
from glm_jax.training.metrics import Sums, summarise, total
from glm_jax.training.run_folder import load_config
from glm_jax.training.trained_params import check_fills_blanks, load_params
from glm_jax.training.writers import json_value

FLAGS = flags.FLAGS

_TASK_FLAGS = {  # beside those that every task has
    "loss": ("data_dir",),
    "bpb": ("input", "limit", "batch_size", "window", "stride", "unidirectional"),
    "lambada": ("input", "limit", "batch_size", "window"),
    "cloze": ("input", "limit", "batch_size", "length_penalty"),
    "fill": ("input", "limit", "batch_size", "max_new_tokens"),
    "harness": (
        *("harness_tasks", "harness_path", "limit", "batch_size"),
        *("window", "stride", "unidirectional"),
    ),
}


def define_flags() -> None:
    cli.define_hosts_flags()
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_integer("step", None, "Step of the checkpoint; by default the newest good one.")
    flags.DEFINE_bool("ema", False, "The moving average of the parameters.")
    flags.DEFINE_enum("task", "loss", list(_TASK_FLAGS), "What to evaluate.")
    flags.DEFINE_multi_string("input", [], "File of the task; repeatable.")
    flags.DEFINE_integer("limit", 0, "Only so many items of each file or task; 0: all.", 0)
    flags.DEFINE_integer("batch_size", 16, "Texts computed together, over all devices.", 1)
    flags.DEFINE_integer("fsdp", 1, "Devices that parameters are split over by rows.", 1)
    flags.DEFINE_integer("model_parallel", 1, "Devices that split heads, mlp and vocabulary.", 1)
    flags.DEFINE_string("data_dir", None, "loss: prepared data; by default the run's.")
    flags.DEFINE_integer("window", 0, "Slots of a row; 0: the row length of training.", 0)
    flags.DEFINE_integer("stride", 0, "Tokens a window adds; 0: 256 or half a window.", 0)
    flags.DEFINE_bool("unidirectional", False, "No window is seen in both directions.")
    flags.DEFINE_float("length_penalty", 0.0, "cloze: divide by length to this power.")
    flags.DEFINE_integer("max_new_tokens", 16, "fill: longest answer, in tokens.", 1)
    flags.DEFINE_list("harness_tasks", [], "harness: names, with commas in between.")
    flags.DEFINE_string("harness_path", None, "harness: folder of task files.")


def main() -> None:
    workdir = Path(cli.required("workdir"))
    check_task()
    waits = load_config(workdir).hosts
    with watched(cli.place(), waits, _nobody_asks, FLAGS.hosts_timeout) as (hosts, watch):
        run = load_run(workdir, watch)
        started = time.perf_counter()
        figures = _EVALUATE[FLAGS.task](run)
        seconds = round(time.perf_counter() - started, 3)
        if hosts.is_first:
            tell(workdir, run.step, figures, seconds)


def _nobody_asks() -> None:
    """Nothing is saved before the end: signals act as they always do."""


def tell(workdir: Path, step: int, figures: dict, seconds: float) -> None:
    """Prints the line, and remembers it for the report."""
    inputs = {"input": ", ".join(Path(name).name for name in FLAGS.input)} if FLAGS.input else {}
    about = {"step": step, "task": FLAGS.task, **inputs, "flags": remembered_flags()}
    line = json.dumps(
        json_value({**about, **figures, "seconds": seconds}), ensure_ascii=False, allow_nan=False
    )
    remember(workdir, line)
    print(line)


def remembered_flags() -> dict:
    """The flags with another value than their default that figures depend on.

    Without them the figures of the moving average look like those of the parameters.
    """
    elsewhere = ("input", "batch_size")  # the line names the input; the other changes no figure
    values = {
        name: FLAGS[name].value
        for name in ("ema", *_TASK_FLAGS[FLAGS.task])
        if name not in elsewhere and FLAGS[name].value != FLAGS[name].default
    }
    return {
        name: ",".join(value) if isinstance(value, list) else value
        for name, value in values.items()
    }


def remember(workdir: Path, line: str) -> None:
    """Appends to `evaluations.jsonl` of the run, which the report shows."""
    try:
        with (workdir / "evaluations.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        print(f"not remembered for the report: {error}", file=sys.stderr)


def check_task() -> None:
    """Refuses, before a checkpoint is read, a task without what it works on.

    Raises:
      UserError: no input or task of the harness is named, a flag is given that the task does not
        have, or the harness is not installed.
    """
    taken = _TASK_FLAGS[FLAGS.task]
    for name in sorted(set().union(*_TASK_FLAGS.values()) - set(taken)):
        if FLAGS[name].present:
            raise UserError(f"--{name} means nothing to --task={FLAGS.task}")
    if "input" in taken and not FLAGS.input:
        raise UserError(f"--task={FLAGS.task} needs --input")
    if FLAGS.task == "harness":
        cli.required("harness_tasks")
        if not importlib.util.find_spec("lm_eval"):
            raise UserError("--task=harness needs lm_eval: pip install -e '.[eval]' in the clone")


class Run(NamedTuple):
    """A checkpoint and the mesh it is evaluated on."""

    config: Config
    params: dict
    step: int
    tokenizer: Tokenizer
    sharding: Sharding
    watch: Watch

    def track(self, batches: Sequence) -> Iterator:
        """The batches, with a bar on a terminal; each is a sign of life."""
        console = Console(stderr=True)
        bar = track(batches, FLAGS.task, console=console, disable=not console.is_terminal)
        for batch in bar:
            self.watch.sign(COMPILING)  # the first of a shape does
            yield batch

    def scorer(self) -> Scorer:
        return Scorer(
            self.config.model,
            self.params,
            self.tokenizer.special,
            self.sharding,
            batch_size=FLAGS.batch_size,
            track=self.track,
        )

    def filler(self) -> Filler:
        return Filler(
            self.config.model, self.params, self.tokenizer, self.sharding, FLAGS.batch_size
        )

    def windows(self) -> bpb.Windows:
        return bpb.make_windows(
            self.config, FLAGS.window, FLAGS.stride, unidirectional=FLAGS.unidirectional
        )

    def goes_on(self) -> bool:
        """A sign of life before a batch; never gives up."""
        self.watch.sign(COMPILING)
        return False

    @property
    def mask_id(self) -> int:
        return document_mask(self.config.objective, self.tokenizer.special)


def load_run(workdir: Path, watch: Watch) -> Run:
    """The checkpoint that the flags name, laid out over all devices by the rules of its config.

    Raises:
      UserError: no such run, no good step, a mesh that does not fit, or a task that fills blanks,
        which the run does not learn.
    """
    if FLAGS.task != "loss":
        check_fills_blanks(workdir)
    mesh = load_config(workdir).mesh
    mesh = dataclasses.replace(mesh, data=-1, fsdp=FLAGS.fsdp, model=FLAGS.model_parallel)
    sharding = make_sharding(mesh)
    config, params, step = load_params(workdir, FLAGS.step, ema=FLAGS.ema, sharding=sharding)
    return Run(config, params, step, Tokenizer.load(workdir / "tokenizer"), sharding, watch)


def evaluate_loss(run: Run) -> dict:
    """Validation as in training, with the number of targets and standard errors by group."""
    config = run.config
    if FLAGS.data_dir:
        data = dataclasses.replace(config.data, dir=FLAGS.data_dir)
        config = dataclasses.replace(config, data=data)
    dataset = open_dataset(config, run.tokenizer)
    check_validation_batch(config, run.sharding)
    share = run.sharding.host_share
    validate = make_validation(
        config,
        len(dataset.languages),
        run.sharding,
        lambda rows: equal_batches(rows, config, share),
    )
    sums = validate(run.params, dataset.validation, run.goes_on)
    by_batch = Sums(*map(np.stack, zip(*sums, strict=True)))
    return {
        **summarise(total(sums), dataset.languages),
        **loss.spread(
            by_batch.loss, by_batch.weight, by_batch.targets, list(dataset.languages.values())
        ),
    }


def evaluate_bpb(run: Run) -> dict:
    windows = run.windows()
    result = bpb.evaluate(
        run.scorer(), run.tokenizer, FLAGS.input, windows, run.mask_id, FLAGS.limit
    )
    return {**result.to_dict(), **windows._asdict()}


def evaluate_lambada(run: Run) -> dict:
    slots = FLAGS.window or longest_row(run.config)
    result = lambada.evaluate(
        run.scorer(), run.tokenizer, FLAGS.input, slots, run.mask_id, FLAGS.limit
    )
    return result.to_dict()


def evaluate_cloze(run: Run) -> dict:
    slots = longest_row(run.config)
    result = cloze.evaluate(
        run.scorer(), run.tokenizer, FLAGS.input, slots, FLAGS.length_penalty, FLAGS.limit
    )
    return result.to_dict()


def evaluate_fill(run: Run) -> dict:
    options = DecodingOptions(max_new_tokens=FLAGS.max_new_tokens)
    slots = longest_row(run.config)
    result = fill.evaluate(
        run.filler(), run.tokenizer, FLAGS.input, slots, options, FLAGS.limit, run.track
    )
    return result.to_dict()


def evaluate_harness(run: Run) -> dict:
    from glm_jax.tasks import harness  # needs lm_eval, which is optional

    model = harness.GLMHarness(
        run.scorer(), run.filler(), run.tokenizer, run.windows(), run.mask_id
    )
    folder = FLAGS.harness_path or harness.TASKS_DIR
    return harness.evaluate(model, FLAGS.harness_tasks, folder, FLAGS.limit)


_EVALUATE = {
    "loss": evaluate_loss,
    "bpb": evaluate_bpb,
    "lambada": evaluate_lambada,
    "cloze": evaluate_cloze,
    "fill": evaluate_fill,
    "harness": evaluate_harness,
}


if __name__ == "__main__":
    cli.run(main, define_flags)
