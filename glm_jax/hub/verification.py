"""An exported folder against JAX: logits of rows, greedy answers, or the tensors themselves."""

import dataclasses
import functools
import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from glm_jax.batch import Batch
from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.hub.model_files import Release
from glm_jax.layouts import parameters, read_all
from glm_jax.layouts.folder import open_checkpoint
from glm_jax.layouts.sources import ParamSource
from glm_jax.model import glm
from glm_jax.model.decoding import DecodingOptions, Filler, encode_context
from glm_jax.objective import infill
from glm_jax.tokenizer import SPECIAL_PIECES, SpecialTokens, Tokenizer

TOLERANCE = 1e-4
"""Largest difference of float32 logits that passes."""

_ROWS = 4
_MAX_NEW_TOKENS = 32
_TEXTS = (
    "Paris is the capital of [MASK].",
    "The [MASK] sat on the [MASK] and [sMASK]",
    "北京是[MASK]的首都，[MASK]是中国最大的城市。",
    "今天天气很好，[gMASK]",
)
_CONTINUED = ("Paris is the capital of[gMASK]", "The cat sat on[gMASK]", "今天天气很好，[gMASK]")
_NATIVE = ("glm", "glm4")


class Check(NamedTuple):
    """One comparison: how far values are apart, how many choices agree."""

    case: str
    difference: float | None  # largest of the logits; None where choices decide
    same: int
    total: int

    @property
    def passed(self) -> bool:
        if self.difference is None:
            return self.same == self.total
        return self.difference <= TOLERANCE  # and not NaN

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """What a table shows."""
        difference = "" if self.difference is None else f"{self.difference:.1e}"
        choice = f"{self.same} of {self.total}"
        return self.case, difference, choice, "ok" if self.passed else "differs"


def check_torch() -> None:
    """Raises: UserError: PyTorch or transformers is not installed."""
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        names = " and ".join(missing)
        raise UserError(f"--verify needs {names}: pip install -e '.[torch]' in the clone")


def verify(release: Release, source: ParamSource, out: Path, lengths: Sequence[int]) -> list[Check]:
    """Compares the folder `out` with JAX on what was exported, in float32.

    Layouts that transformers reads without code of others are run; the tensors of the others are
    read back.

    Args:
      source: what was exported; it is rounded as the export rounded it.
      lengths: rows of so many slots.
    """
    checks = [_compare_tensors(release, source, out)]
    if release.layout.name != "glm_jax" and release.layout.name not in _NATIVE:
        return checks
    config = dataclasses.replace(source.config, dtype="float32", param_dtype="float32")
    params = jax.tree.map(lambda x: x.astype(release.dtype).astype(np.float32), read_all(source))
    model = _load(release, out)
    with jax.default_matmul_precision("highest"):
        checks += [_compare_logits(release, config, params, model, length) for length in lengths]
        if release.tokenizer is not None:
            checks += _answers(release, config, params, model, out)
    return checks


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
        sample = infill.build(
            text, spans.tolist(), mask_id=special.mask, special=special, model=config
        )
        rows.append(infill.pack([sample], length, objective="token", source=0, special=special))
    return Batch(*map(np.stack, zip(*rows, strict=True)))


def _load(release: Release, out: Path) -> Any:
    import transformers

    if release.layout.name in _NATIVE:
        auto, code = transformers.AutoModelForCausalLM, False
    else:
        auto, code = transformers.AutoModelForSeq2SeqLM, True
    model = auto.from_pretrained(out, trust_remote_code=code)
    if release.layout.name in _NATIVE:
        model.set_attn_implementation("eager")
    return model.float().eval()


def _compare_tensors(release: Release, source: ParamSource, out: Path) -> Check:
    """Every parameter, read back from the folder, against what was written."""
    back, same = open_checkpoint(out, release.layout.name).source, 0
    shapes, dtype = parameters.shapes(source.config), np.dtype(release.dtype)
    for name, shape in shapes.items():
        pair = np.empty(shape, dtype), np.empty(shape, dtype)
        for side, array in zip((source, back), pair, strict=True):
            side.read(name, (slice(None),) * len(shape), array)
        same += pair[0].tobytes() == pair[1].tobytes()
    return Check("parameters read back", None, same, len(shapes))


def _compare_logits(
    release: Release, config: ModelConfig, params: dict, model: Any, length: int
) -> Check:
    batch = random_rows(config, length)
    ranges = (batch.position, batch.block_position, batch.kv_start, batch.kv_end)
    apply = jax.jit(functools.partial(glm.apply_logits, config))
    ours = np.asarray(apply(params, batch.tokens, *ranges))
    theirs = (
        native_logits(model, batch)
        if release.layout.name in _NATIVE
        else torch_logits(model, batch)
    )
    used = batch.segment > 0  # a native class lets padding see something
    ours, theirs = ours[used], theirs[used]
    same = int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    return Check(f"{length} slots", float(np.abs(ours - theirs).max()), same, int(used.sum()))


def torch_logits(model: Any, batch: Batch) -> np.ndarray:
    """Logits [B, T, V] of our class."""
    import torch

    with torch.no_grad():
        return torch_outputs(model, batch).numpy()


def native_logits(model: Any, batch: Batch) -> np.ndarray:
    """Logits [B, T, V] of a class of transformers."""
    import torch

    with torch.no_grad():
        return native_outputs(model, batch).numpy()


def torch_outputs(model: Any, batch: Batch) -> Any:
    """As `torch_logits`, as a tensor that can be differentiated."""
    import torch

    tokens, position, block_position, kv_start, kv_end = (
        torch.from_numpy(x).long()
        for x in (batch.tokens, batch.position, batch.block_position, batch.kv_start, batch.kv_end)
    )
    return model(
        tokens,
        attention_mask=torch.ones_like(tokens),
        position_ids=torch.stack([position, block_position], dim=1),
        kv_start=kv_start,
        kv_end=kv_end,
    ).logits


def native_outputs(model: Any, batch: Batch) -> Any:
    """As `native_logits`, as a tensor that can be differentiated; the key ranges are a mask."""
    import torch

    key = np.arange(batch.tokens.shape[1])
    visible = (batch.kv_start[..., None] <= key) & (key < batch.kv_end[..., None])
    visible |= (batch.segment == 0)[..., None]
    bias = np.where(visible, 0.0, np.finfo(np.float32).min).astype(np.float32)
    return model(
        torch.from_numpy(batch.tokens).long(),
        attention_mask=torch.from_numpy(bias[:, None]),
        position_ids=torch.from_numpy(batch.position).long(),
    ).logits


def _answers(
    release: Release, config: ModelConfig, params: dict, model: Any, out: Path
) -> list[Check]:
    """Greedy answers; a native class only continues a text, in the way that it serves."""
    import transformers

    new_tokens = min(_MAX_NEW_TOKENS, config.max_positions)
    filler, options = Filler(config, params, release.tokenizer), DecodingOptions(new_tokens)
    if release.layout.name == "glm_jax":
        tokenizer = transformers.AutoTokenizer.from_pretrained(out, trust_remote_code=False)
        theirs = model.fill_blanks(tokenizer, _TEXTS, new_tokens, do_sample=False)
        theirs = [answer.token_ids for answer in theirs]
        return [_compare_answers([f.token_ids for f in filler.fill(_TEXTS, options)], theirs)]
    if (config.context, config.span_position) != ("causal", "slot"):
        return []
    ours = [filled.token_ids for filled in filler.fill(_CONTINUED, options)]
    theirs = [_continue(release.tokenizer, model, text, new_tokens) for text in _CONTINUED]
    return [_compare_answers(ours, theirs)]


def _continue(tokenizer: Tokenizer, model: Any, text: str, new_tokens: int) -> list[list[int]]:
    import torch

    special = tokenizer.special
    prompt = [*encode_context(text, tokenizer).tokens.tolist(), special.sop]
    ids = torch.tensor([prompt])
    with torch.no_grad():
        answer = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
        )[0, len(prompt) :].tolist()
    stops = {special.eop, special.eos}
    return [list(itertools.takewhile(lambda token: token not in stops, answer))]


def _compare_answers(ours: list, theirs: list) -> Check:
    pairs = [
        pair
        for a, b in zip(ours, theirs, strict=True)
        for x, y in zip(a, b, strict=True)
        for pair in itertools.zip_longest(x, y)
    ]
    return Check("greedy answers", None, sum(x == y for x, y in pairs), len(pairs))
