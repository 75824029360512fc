"""Exports a run to PyTorch: `python -m glm_jax.export --from=RUN --out=FOLDER --verify`.

The folder loads in transformers with `AutoModelForSeq2SeqLM.from_pretrained(FOLDER,
trust_remote_code=True)` and `AutoTokenizer.from_pretrained(FOLDER)`.
"""

import dataclasses
import functools
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from glm_jax import cli, layouts
from glm_jax.batch import Batch
from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.folders import written_whole
from glm_jax.hub.model_files import MODEL_TYPE, write_model_files
from glm_jax.hub.tokenizer_files import write_tokenizer
from glm_jax.layouts.io import write_tensors
from glm_jax.model import glm
from glm_jax.model.decoding import DecodingOptions, Filler
from glm_jax.objective import infill
from glm_jax.tokenizer import SPECIAL_PIECES, SpecialTokens, Tokenizer
from glm_jax.training.checkpoint import load_params

FLAGS = flags.FLAGS


TOLERANCE = 1e-4
"""Largest difference of float32 logits that passes `--verify`."""

_ROWS = 4
_MAX_NEW_TOKENS = 16
_TEXTS = (
    "Paris is the capital of [MASK].",
    "The [MASK] sat on the [MASK] and [sMASK]",
    "北京是[MASK]的首都，[MASK]是中国最大的城市。",
    "今天天气很好，[gMASK]",
)


def define_flags() -> None:
    flags.DEFINE_string("from", None, "Folder of the run.")
    flags.DEFINE_integer("step", None, "Step of the checkpoint; by default the newest good one.")
    flags.DEFINE_bool("ema", False, "The moving average of the parameters.")
    flags.DEFINE_string("out", None, "Folder to write.")
    flags.DEFINE_enum("layout", "glm_jax", ["glm_jax"], "Names and shapes of the tensors.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the weights.")
    flags.DEFINE_string("max_shard_size", "5GB", "Larger weights are split.")
    flags.DEFINE_bool("verify", False, "Compare PyTorch with JAX; exit 1 where they differ.")
    flags.DEFINE_bool("overwrite", False, "Replace an earlier export.")


def main() -> None:
    workdir, out = Path(cli.required("from")), Path(cli.required("out"))
    check_target(out, FLAGS.overwrite)
    if FLAGS.verify:
        check_torch()
    config, params, step = load_params(workdir, FLAGS.step, ema=FLAGS.ema)
    tokenizer = Tokenizer.load(workdir / "tokenizer")
    export_model(
        config.model,
        params,
        tokenizer,
        out,
        layout=FLAGS.layout,
        dtype=FLAGS.dtype,
        max_shard_size=FLAGS.max_shard_size,
        overwrite=FLAGS.overwrite,
    )
    print(f"step {step} of {workdir} is in {out}")
    if FLAGS.verify:
        lengths = sorted({8, 33, config.data.seq_length})
        checks = verify(config.model, params, tokenizer, out, lengths, FLAGS.dtype)
        Console().print(_table(checks))
        if not all(check.passed for check in checks):
            sys.exit(1)


def export_model(
    config: ModelConfig,
    params: dict[str, Any],
    tokenizer: Tokenizer,
    out: Path,
    *,
    layout: str = "glm_jax",
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    overwrite: bool = False,
) -> None:
    """Writes weights, model code, tokenizer and card into the folder `out`, all or nothing.

    Args:
      config: of the model, with its vocab_size.
      params: nested dict of arrays with our names.
      layout: "glm_jax", the one that model code is shipped for.
      dtype: of the weights, "float32" or "bfloat16".
      max_shard_size: larger weights are split into files of at most this size.
      overwrite: replace `out` if it is an earlier export.

    Raises:
      UserError: `out` exists or cannot be written; `params` are not those of `config`.
    """
    check_target(out, overwrite)
    with written_whole(out) as partial:
        write_tensors(
            partial,
            layouts.tensor_shapes(layout, config),
            layouts.export_tensors(layout, params, config, dtype),
            np.dtype(dtype),
            max_shard_size,
        )
        write_tokenizer(tokenizer, partial, config.max_positions)
        write_model_files(config, tokenizer, partial, dtype)


def check_target(out: Path, overwrite: bool) -> None:
    """Refuses to write over anything but an earlier export that may be replaced.

    Raises:
      UserError: `out` is in the way.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not _is_export(out):
        raise UserError(f"--out {out} exists and is not an export of this program")
    if not overwrite:
        raise UserError(f"--out {out} is an earlier export; --overwrite replaces it")


def check_torch() -> None:
    """Raises: UserError: PyTorch or transformers is not installed."""
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        names = " and ".join(missing)
        raise UserError(f"--verify needs {names}: pip install -e '.[torch]' in the clone")


class Check(NamedTuple):
    """One comparison of PyTorch and JAX: how far logits are apart, how many choices agree."""

    case: str
    difference: float | None  # largest of the logits; None where choices decide
    same: int
    total: int

    @property
    def passed(self) -> bool:
        if self.difference is None:
            return self.same == self.total
        return self.difference <= TOLERANCE  # and not NaN


def verify(
    config: ModelConfig,
    params: dict[str, Any],
    tokenizer: Tokenizer,
    out: Path,
    lengths: list[int],
    dtype: str = "float32",
) -> list[Check]:
    """Compares the folder `out`, loaded by transformers, with JAX on `params`, in float32.

    Args:
      params: what was exported; they are rounded as the export rounded them.
      lengths: rows of so many slots.
      dtype: of the exported weights.

    Returns:
      A check for each length, with padding in the rows, and one for the filled blanks.
    """
    import transformers

    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(out, trust_remote_code=True)
    model = model.float().eval()
    config = dataclasses.replace(config, dtype="float32", param_dtype="float32")
    params = jax.tree.map(lambda x: np.asarray(x).astype(dtype).astype(np.float32), params)
    with jax.default_matmul_precision("highest"):
        checks = [_compare_logits(config, params, model, length) for length in lengths]
        hub_tokenizer = transformers.AutoTokenizer.from_pretrained(out, trust_remote_code=False)
        new_tokens = min(_MAX_NEW_TOKENS, config.max_positions)
        ours = Filler(config, params, tokenizer).fill(_TEXTS, DecodingOptions(new_tokens))
        theirs = model.fill_blanks(hub_tokenizer, _TEXTS, new_tokens, do_sample=False)
    return [*checks, _compare_answers(ours, theirs)]


def random_rows(config: ModelConfig, length: int) -> Batch:
    """Blank infilling rows [_ROWS, length] of random tokens, each one slot shorter than the last.

    Blanks follow in random order, and the last rows end in padding.
    """
    rng, special = np.random.default_rng(length), SpecialTokens()
    rows = []
    for padding in range(_ROWS):
        blanks = min(1 + padding, length // 8)
        text = rng.integers(
            len(SPECIAL_PIECES), config.vocab_size, length - padding - 2 * blanks, np.int32
        )
        cuts = np.linspace(0, len(text), 2 * blanks + 1).astype(int)
        spans = rng.permutation(np.stack([cuts[:-1:2], cuts[1::2]], 1))
        sample = infill.build(text, spans.tolist(), mask_id=special.mask, special=special)
        rows.append(infill.pack([sample], length, objective="token", source=0, special=special))
    return Batch(*map(np.stack, zip(*rows, strict=True)))


def _compare_logits(config: ModelConfig, params: dict, model, length: int) -> Check:
    import torch

    batch = random_rows(config, length)
    ranges = (batch.position, batch.block_position, batch.kv_start, batch.kv_end)
    apply = jax.jit(functools.partial(glm.apply_logits, config))
    ours = np.asarray(apply(params, batch.tokens, *ranges))
    tokens, position, block_position, kv_start, kv_end = (
        torch.from_numpy(x).long() for x in (batch.tokens, *ranges)
    )
    with torch.no_grad():
        theirs = model(
            tokens,
            attention_mask=torch.ones_like(tokens),
            position_ids=torch.stack([position, block_position], dim=1),
            kv_start=kv_start,
            kv_end=kv_end,
        ).logits.numpy()
    same = int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    return Check(f"{length} slots", float(np.abs(ours - theirs).max()), same, tokens.numel())


def _compare_answers(ours: list, theirs: list) -> Check:
    pairs = [
        pair
        for a, b in zip(ours, theirs, strict=True)
        for x, y in zip(a.token_ids, b.token_ids, strict=True)
        for pair in itertools.zip_longest(x, y)
    ]
    return Check("greedy answers", None, sum(x == y for x, y in pairs), len(pairs))


def _table(checks: list[Check]) -> Table:
    table = Table("PyTorch and JAX", "largest difference", "same choice", "")
    for check in checks:
        difference = "" if check.difference is None else f"{check.difference:.1e}"
        choice = f"{check.same} of {check.total}"
        table.add_row(check.case, difference, choice, "ok" if check.passed else "[red]differs[/]")
    return table


def _is_export(folder: Path) -> bool:
    try:
        return json.loads((folder / "config.json").read_text())["model_type"] == MODEL_TYPE
    except (OSError, ValueError, KeyError, TypeError):
        return False


if __name__ == "__main__":
    cli.run(main, define_flags)
