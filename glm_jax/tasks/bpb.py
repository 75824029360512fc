"""Bits per byte: how well the model writes documents from their beginning."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glm_jax.config import Config
from glm_jax.documents import Document
from glm_jax.errors import UserError
from glm_jax.model.scoring import Request, Scorer
from glm_jax.stages import longest_row
from glm_jax.tasks.continuation import CONTROL_SYMBOLS, continuation
from glm_jax.tasks.files import read_texts
from glm_jax.tasks.result import Result, by_language, perplexity, ratio
from glm_jax.tokenizer import SpecialTokens, Tokenizer

DEFAULT_STRIDE = 256  # GLM 2021's --overlapping-eval


class Windows(NamedTuple):
    """How a document longer than a row is cut.

    Attributes:
      window_tokens: of the document, in a window.
      stride: tokens that each window after the first adds.
      unidirectional: all of a window is Part B; otherwise what earlier windows scored is Part A,
        seen in both directions.
    """

    window_tokens: int
    stride: int
    unidirectional: bool


def make_windows(config: Config, slots: int = 0, stride: int = 0, *, unidirectional=False):
    """Windows for rows of `slots`, control symbols included.

    Args:
      slots: 0 for the row length of training.
      stride: 0 for 256, or half a window where that is less.

    Raises:
      UserError: sizes that leave no token, that skip some, or that the position table cannot hold.
    """
    slots = slots or longest_row(config)
    tokens = slots - CONTROL_SYMBOLS  # sop has the slot of the last token, which is no input
    stride = stride or max(1, min(DEFAULT_STRIDE, tokens // 2))
    if not 1 <= stride <= tokens:
        raise UserError(
            f"--stride {stride} must be from 1 to {tokens}, the tokens of a window of {slots} slots"
        )
    model = config.model
    if model.position == "learned_2d" and tokens > model.max_positions:
        raise UserError(
            f"--window {slots} is more than the position table holds "
            f"(model.max_positions {model.max_positions})"
        )
    return Windows(tokens, stride, unidirectional)


def evaluate(
    scorer: Scorer,
    tokenizer: Tokenizer,
    paths: Sequence[str | Path],
    windows: Windows,
    mask_id: int,
    limit: int = 0,
) -> Result:
    """Bits per byte of the documents of `paths`, by language.

    Bits per byte is the sum of negative log-likelihoods over (UTF-8 bytes x ln 2), as GLM-130B
    reports it; its standard error takes a document as the unit. Beside it, the perplexity by the
    original words (exp(sum nll / words), GLM 2021; for Chinese, characters that are not white
    space), and the counts.

    Raises:
      UserError: see `files.read_texts`.
    """
    documents = read_texts(paths, limit)
    texts = [document.text for document in documents]
    nll, tokens = score_texts(scorer, tokenizer.encode_batch(texts), windows, mask_id)
    size = [len(text.encode()) for text in texts]
    units = [_units(document) for document in documents]
    languages = [document.language for document in documents]

    def group(figure, *columns):
        return by_language(languages, figure, *columns)

    per_unit = group(lambda x, y: perplexity(x.sum(), y.sum()), nll, units)
    per_unit.pop("all")  # words of one language and characters of the other do not add up
    return Result(
        "bits_per_byte",
        group(ratio, np.array(nll) / math.log(2), size),
        {
            "word_perplexity": per_unit,
            "tokens": group(lambda x: int(x.sum()), tokens),
            "bytes": group(lambda x: int(x.sum()), size),
        },
    )


def score_texts(
    scorer: Scorer, texts: Sequence[np.ndarray], windows: Windows, mask_id: int
) -> tuple[list[float], list[int]]:
    """Negative log-likelihood in nats and number of tokens of each text, int32 [n]."""
    requests, owner = [], []
    for index, tokens in enumerate(texts):
        for request in window_requests(tokens, windows, mask_id, scorer.special):
            requests.append(request)
            owner.append(index)
    nll = np.zeros(len(texts))
    for index, (scores,) in zip(owner, scorer.score(requests), strict=True):
        nll[index] -= scores.log_probs.sum(dtype=np.float64)
    return nll.tolist(), [len(tokens) for tokens in texts]


def window_requests(
    tokens: np.ndarray, windows: Windows, mask_id: int, special: SpecialTokens
) -> Iterator[Request]:
    """Requests that score every token of a document, int32 [n], exactly once.

    The first window is Part B alone. Each later one moves on by the stride: the tokens it shares
    with the window before it are its context, the rest is scored (GLM 2021's LMDataset; there the
    first token of a document is context and not scored, which bytes would not allow here). There
    is no eos and no eop.
    """
    yield continuation(_EMPTY, [tokens[: windows.window_tokens]], mask_id, special)
    shared = windows.window_tokens - windows.stride
    for start in range(windows.stride, len(tokens) - shared, windows.stride):
        window = tokens[start : start + windows.window_tokens]
        if windows.unidirectional:
            yield continuation(_EMPTY, [window], mask_id, special, given=shared)
        else:
            yield continuation(window[:shared], [window[shared:]], mask_id, special)


_EMPTY = np.zeros(0, np.int32)


def _units(document: Document) -> int:
    """Words of a text as it was written; for Chinese its characters."""
    words = document.text.split()
    return sum(map(len, words)) if document.language == "zh" else len(words)
