"""Our training step beside the same step in plain PyTorch: two loss curves that must be one.

    python benchmarks/reference_run.py --out=almanac_run
    python benchmarks/reference_run.py --corpus=en.jsonl.gz --corpus=zh.jsonl.gz --out=run

Both sides start from the same weights and see the same rows, with the same AdamW and schedule and
without dropout. The PyTorch side is `glm_2021_torch.py`, which shares no code with glm_jax. The
folder `--out` gets the prepared data, `reference_curve.csv` (the curves), `reference_curve.svg`
(the plot; it needs matplotlib) and `reference_run.json` (the printed figures and the config). The
exit code is 1 if the losses or learning rates of any step differ by more than a thousandth.
"""

import contextlib
import csv
import importlib.metadata
import importlib.util
import itertools
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from glm_jax import cli, layouts
from glm_jax.batch import WHOLE, Batch
from glm_jax.config import Config, default_dict, from_dict, to_dict, with_vocab_size
from glm_jax.data.dataset import Dataset, equal_batches, load_tokenizer, open_dataset, with_sources
from glm_jax.errors import UserError
from glm_jax.model.presets import preset
from glm_jax.parallel.sharding import Sharding, make_sharding
from glm_jax.training.step import TrainState, init_state, make_train_step

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-3  # largest relative difference of loss and learning rate at any step
WINDOW = 25  # steps of the running mean that is reported and plotted beside the loss
ALMANAC_VOCAB, CORPUS_VOCAB = 1500, 8000
PACKAGES = ("jax", "jaxlib", "optax", "torch", "numpy", "sentencepiece")

FLAGS = flags.FLAGS


class Update(NamedTuple):
    """Figures of one update, from either side."""

    loss: float  # mean over the targets of the batch, before the update
    grad_norm: float  # before clipping
    learning_rate: float
    source_losses: np.ndarray  # [sources], as `loss`; nan where the batch has no row of one


class Start(NamedTuple):
    """What both sides start from."""

    config: Config  # with vocabulary and sources resolved
    dataset: Dataset
    sharding: Sharding  # one device
    state: TrainState  # donated to the first step of `our_trainer`
    weights: dict[str, np.ndarray]  # the same parameters under their published names


Trainer = Callable[[Batch], Update]


def define_flags() -> None:
    flags.DEFINE_multi_string("corpus", [], "Text file as for prepare; by default the almanac.")
    flags.DEFINE_string("out", None, "Folder to write; it must not exist.")
    flags.DEFINE_integer("steps", 1000, "Updates, over which the learning rate decays.", 1)
    flags.DEFINE_enum(
        "dtype",
        "float32",
        ["float32", "float64"],
        "Of both sides. In float64 rounding does not explain a visible difference.",
    )


def main() -> None:
    out = Path(cli.required("out")).absolute()
    if out.exists():
        raise UserError(f"--out={out} already exists")
    for package in ("torch", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"this benchmark needs {package}: pip install {package}")
    import torch

    torch.set_num_threads(1)  # beside XLA's threads more of them are slower, on few cores
    jax.config.update("jax_enable_x64", FLAGS.dtype == "float64")

    data = prepare_data([str(Path(path).absolute()) for path in FLAGS.corpus], out)
    config = reference_config(data, FLAGS.steps, FLAGS.dtype)
    initial = start(config)
    ours, pytorch = run(initial)
    languages = list(initial.dataset.languages.values())
    write_curves(out / "reference_curve.csv", ours, pytorch, languages)
    plot(out / "reference_curve.svg", ours, pytorch, languages)
    differences = compare(ours, pytorch)
    report = {"differences": differences, "versions": versions(), "config": to_dict(config)}
    (out / "reference_run.json").write_text(json.dumps(report, indent=2) + "\n")
    print(table(ours, pytorch, differences))
    if not agree(differences):
        sys.exit(1)


def prepare_data(corpus: list[str], out: Path) -> Path:
    """Tokenizer and token datasets of the corpus, made as the quickstart makes them.

    Args:
      corpus: absolute paths; none for the almanac.

    Raises:
      UserError: one of the commands failed.
    """
    vocab = [f"--vocab_size={CORPUS_VOCAB}"]
    if not corpus:
        _python("-m", "glm_jax.almanac", f"--out={out / 'almanac'}")
        corpus = [str(path) for path in sorted((out / "almanac").glob("corpus_*.jsonl"))]
        vocab = [f"--vocab_size={ALMANAC_VOCAB}", "--character_coverage=1.0"]
    inputs = [f"--input={path}" for path in corpus] + ["--on_error=skip"]
    tokenizer, data = out / "tokenizer", out / "data"
    _python("tokenizers/train.py", *inputs, *vocab, f"--out={tokenizer}")
    _python("-m", "glm_jax.prepare", *inputs, f"--tokenizer={tokenizer}", f"--out={data}")
    return data


def _python(*command: str) -> None:
    finished = subprocess.run([sys.executable, *command], cwd=ROOT, check=False)
    if finished.returncode:
        raise UserError(f"python {command[0]} {command[1]} ended with {finished.returncode}")


def reference_config(data: Path, steps: int, dtype: str = "float32") -> Config:
    """The tiny model with the published optimizer of GLM-Base, on all three kinds of blanks."""
    values = default_dict()
    values["model"] = to_dict(preset("glm_tiny")) | {"dtype": dtype, "param_dtype": dtype}
    values["data"] |= {"dir": str(data), "seq_length": 128}
    values["objective"] |= {
        "token_weight": 0.5,
        "sentence_weight": 0.25,
        "document_weight": 0.25,
    }
    values["optimizer"] |= {"learning_rate": 4e-4, "warmup_steps": steps // 20, "final_ratio": 0.05}
    values["training"] |= {"steps": steps, "batch_size": 8}
    return from_dict(values)


def start(config: Config) -> Start:
    """Opens the data and makes the initial weights.

    Raises:
      UserError: the model is not one of GLM 2021, see `layouts.export_tensors`.
    """
    tokenizer = load_tokenizer(config)
    config = with_sources(with_vocab_size(config, tokenizer.vocab_size))
    dataset = open_dataset(config, tokenizer)
    sharding = make_sharding(config.mesh, jax.devices()[:1])
    state = init_state(config, sharding)
    params = jax.device_get(state.params)
    weights = dict(layouts.export_tensors("glm_2021", params, config.model))
    return Start(config, dataset, sharding, state, weights)


def run(initial: Start) -> tuple[list[Update], list[Update]]:
    """Trains both sides in turns and returns our updates and those of PyTorch."""
    config = initial.config
    ours, pytorch = our_trainer(initial), pytorch_trainer(initial)
    updates = []
    with contextlib.closing(equal_batches(initial.dataset.train, config, WHOLE)) as batches:
        for batch in itertools.islice(batches, config.training.steps):
            updates.append((ours(batch), pytorch(batch)))
            if len(updates) % 100 == 0:
                a, b = updates[-1]
                print(f"step {len(updates)}: ours {a.loss:.6f}, PyTorch {b.loss:.6f}", flush=True)
    ours_updates, pytorch_updates = map(list, zip(*updates, strict=True))
    return ours_updates, pytorch_updates


def our_trainer(initial: Start) -> Trainer:
    """Our training step, from the initial state."""
    config, dataset, sharding, state, _ = initial
    step = make_train_step(config, sharding, len(dataset.languages))

    def update(batch: Batch) -> Update:
        nonlocal state
        state, metrics = step(state, sharding.place(batch))
        sums = jax.device_get(metrics.sums)
        return Update(
            float(sums.loss.sum() / sums.weight.sum()),
            float(metrics.grad_norm),
            float(metrics.learning_rate),
            _means(sums.loss.sum(1), sums.weight.sum(1)),
        )

    return update


def pytorch_trainer(initial: Start) -> Trainer:
    """The PyTorch step, from a copy of the initial weights."""
    import glm_2021_torch

    config, num_sources = initial.config, len(initial.dataset.languages)
    m, o = config.model, config.optimizer
    shape = glm_2021_torch.Shape(
        m.vocab_size,
        m.num_layers,
        m.hidden_dim,
        m.num_heads,
        m.mlp_dim,
        m.max_positions,
        gelu={"gelu_tanh": "tanh", "gelu": "none"}[m.activation],
        norm_eps=m.norm_eps,
    )
    recipe = glm_2021_torch.Recipe(
        o.learning_rate,
        o.warmup_steps,
        o.decay_steps or config.training.steps,
        o.final_ratio,
        (o.b1, o.b2),
        o.eps,
        o.weight_decay,
        o.clip_norm,
    )
    trainer = glm_2021_torch.Trainer(shape, recipe, initial.weights)

    def update(batch: Batch) -> Update:
        position_ids = np.stack([batch.position, batch.block_position], axis=1)
        result = trainer(batch.tokens, batch.targets, batch.weights, position_ids, batch.segment)
        source = batch.source[:, 0]
        losses = np.bincount(source, result.row_losses, num_sources)
        targets = np.bincount(source, batch.weights.sum(1), num_sources)
        return Update(result.loss, result.grad_norm, result.learning_rate, _means(losses, targets))

    return update


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def compare(ours: list[Update], pytorch: list[Update]) -> dict[str, dict[str, float]]:
    """Relative differences over the steps by figure: the largest, its step (from 1), the mean."""
    curves = {
        "loss": _column("loss", ours, pytorch),
        f"loss, mean of {WINDOW}": tuple(map(smooth, _column("loss", ours, pytorch))),
        "gradient norm": _column("grad_norm", ours, pytorch),
        "learning rate": _column("learning_rate", ours, pytorch),
    }
    differences = {}
    for name, (a, b) in curves.items():
        difference = np.abs(a - b) / np.abs(b)
        differences[name] = {
            "largest": float(difference.max()),
            "step": int(difference.argmax()) + 1 + len(ours) - len(difference),
            "mean": float(difference.mean()),
        }
    return differences


def agree(differences: dict[str, dict[str, float]]) -> bool:
    """Whether the curves are one; a loss that is not a number never agrees."""
    return all(differences[name]["largest"] <= TOLERANCE for name in ("loss", "learning rate"))


def _column(name: str, *sides: list[Update]) -> tuple[np.ndarray, ...]:
    return tuple(np.array([getattr(update, name) for update in side]) for side in sides)


def smooth(curve: np.ndarray) -> np.ndarray:
    """Means of the last WINDOW steps, without the nan; the first is that of step WINDOW."""
    window = np.lib.stride_tricks.sliding_window_view(curve, min(WINDOW, len(curve)))
    return np.nanmean(window, axis=1)


def table(ours: list[Update], pytorch: list[Update], differences: dict) -> str:
    """The figures as Markdown."""
    lines = [
        "| relative difference | largest | at step | mean |",
        "|---|---|---|---|",
        *(
            f"| {name} | {row['largest']:.1e} | {row['step']} | {row['mean']:.1e} |"
            for name, row in differences.items()
        ),
        "",
        f"| loss | step 1 | mean of the last {min(WINDOW, len(ours))} |",
        "|---|---|---|",
    ]
    for name, side in (("ours", ours), ("PyTorch", pytorch)):
        (loss,) = _column("loss", side)
        lines.append(f"| {name} | {loss[0]:.6f} | {smooth(loss)[-1]:.6f} |")
    verdict = "agree" if agree(differences) else f"DISAGREE by more than {TOLERANCE}"
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    return "\n".join([*lines, "", f"{len(ours)} steps: the curves {verdict}", used])


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"Python": platform.python_version()} | found


def write_curves(
    path: Path, ours: list[Update], pytorch: list[Update], languages: list[str]
) -> None:
    """A line a step; see the header for the columns."""
    names = [f"loss_{language}" for language in languages]
    header = ["step", "ours", "pytorch"]
    header += [f"{side}_{name}" for side in ("ours", "pytorch") for name in names]
    header += ["ours_grad_norm", "pytorch_grad_norm", "ours_learning_rate", "pytorch_learning_rate"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for number, (a, b) in enumerate(zip(ours, pytorch, strict=True), 1):
            figures = [a.loss, b.loss, *a.source_losses, *b.source_losses]
            figures += [a.grad_norm, b.grad_norm, a.learning_rate, b.learning_rate]
            writer.writerow([number, *(f"{figure:.7g}" for figure in figures)])


def plot(path: Path, ours: list[Update], pytorch: list[Update], languages: list[str]) -> None:
    """Both curves in one picture, and their relative difference below."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("agg")
    # The same curves give the same bytes.
    matplotlib.rcParams |= {"svg.hashsalt": "glm_jax", "svg.fonttype": "none"}
    steps = np.arange(1, len(ours) + 1)
    a, b = _column("loss", ours, pytorch)
    figure, (top, bottom) = pyplot.subplots(
        2, sharex=True, figsize=(8, 6), height_ratios=(3, 1), layout="constrained"
    )
    top.set_prop_cycle(color=["tab:orange", "tab:blue", "tab:green", "tab:red"])
    top.plot(steps, b, linewidth=2.5, label="PyTorch")
    top.plot(steps, a, linewidth=0.7, label="glm_jax")
    by_source = np.array([update.source_losses for update in ours])
    for curve, language in zip(map(smooth, by_source.T), languages, strict=True):
        top.plot(steps[-len(curve) :], curve, label=f"glm_jax, {language}, mean of {WINDOW}")
    top.set_ylabel("loss, nats per target")
    top.legend()
    # Losses that are equal to the last bit lie on the lower edge.
    bottom.semilogy(steps, np.maximum(np.abs(a - b) / b, 1e-8), linewidth=0.7)
    bottom.axhline(TOLERANCE, color="tab:red", linestyle="--")
    bottom.set_ylabel("relative difference")
    bottom.set_xlabel("step")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    cli.run(main, define_flags)
