"""Evaluates a checkpoint: `python -m glm_jax.evaluate --workdir=RUN [--task=T --input=F]`.

Tasks: `loss`, the objective's own figures on the validation split of the run's data; `fill`, the
share of blanks of a JSONL file (fields text, answer and optionally language) that greedy decoding
fills exactly.
"""

import dataclasses
import json
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np
from absl import flags

from glm_jax import cli
from glm_jax.config import Config, MeshConfig
from glm_jax.data.dataset import host_batches, open_dataset
from glm_jax.errors import UserError
from glm_jax.model.decoding import Filler
from glm_jax.parallel.sharding import make_sharding
from glm_jax.tokenizer import Tokenizer
from glm_jax.training.checkpoint import load_params
from glm_jax.training.evaluation import check_batch, make_validation
from glm_jax.training.step import state_shardings

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_integer("step", None, "Step of the checkpoint; by default the latest.")
    flags.DEFINE_enum("task", "loss", ["loss", "fill"], "What to evaluate.")
    flags.DEFINE_string("data_dir", None, "Prepared data of the loss task; by default the run's.")
    flags.DEFINE_string("input", None, "JSONL file of the fill task.")
    flags.DEFINE_integer("max_new_tokens", 16, "Longest answer, in tokens.", 1)


def main() -> None:
    workdir = Path(cli.required("workdir"))
    config, params, step = load_params(workdir, FLAGS.step)
    tokenizer = Tokenizer.load(workdir / "tokenizer")
    if FLAGS.task == "loss":
        figures = _validation_loss(config, params, tokenizer)
    else:
        filler = Filler(config.model, params, tokenizer)
        figures = exact_match(filler, Path(cli.required("input")), FLAGS.max_new_tokens)
    print(json.dumps({"step": step, "task": FLAGS.task, **figures}, ensure_ascii=False))


def _validation_loss(config: Config, params: dict, tokenizer: Tokenizer) -> dict[str, float]:
    if FLAGS.data_dir:
        data = dataclasses.replace(config.data, dir=FLAGS.data_dir)
        config = dataclasses.replace(config, data=data)
    dataset = open_dataset(config, tokenizer)
    sharding = make_sharding(MeshConfig())
    check_batch(config, sharding)
    _, shardings = state_shardings(config, sharding)
    validate = make_validation(
        config, dataset.languages, sharding, lambda rows: host_batches(rows, 0, config)
    )
    return validate(jax.device_put(params, shardings.params), dataset.validation)


def exact_match(filler: Filler, path: Path, max_new_tokens: int) -> dict:
    """Share of answers that are filled exactly, white space at the ends aside, by language.

    Raises:
      UserError: missing file, or a line without the fields.
    """
    questions = _read_questions(path)
    filled = filler.fill([question["text"] for question in questions], max_new_tokens)
    hits = defaultdict(list)
    for question, result in zip(questions, filled, strict=True):
        hit = result.answers[0].strip() == question["answer"].strip()
        hits["all"].append(hit)
        if "language" in question:
            hits[question["language"]].append(hit)
    return {
        "exact_match": {group: float(np.mean(values)) for group, values in hits.items()},
        "n": {group: len(values) for group, values in hits.items()},
    }


def _read_questions(path: Path) -> list[dict]:
    if not path.exists():
        raise UserError(f"--input {path} does not exist")
    questions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            question = json.loads(line)
            if isinstance(question["text"], str) and isinstance(question["answer"], str):
                questions.append(question)
                continue
        except (json.JSONDecodeError, KeyError, TypeError):
            pass
        raise UserError(f"{path}:{number}: expected an object with strings text and answer")
    return questions


if __name__ == "__main__":
    cli.run(main, define_flags)
