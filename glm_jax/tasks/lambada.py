"""LAMBADA, the last word of a passage (Paperno et al. 2016, arXiv 1606.06031), scored as in GLM."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glm_jax.documents import Document
from glm_jax.errors import UserError
from glm_jax.model.scoring import Request, Scorer
from glm_jax.tasks.continuation import continuation, fit_left
from glm_jax.tasks.files import located, read_texts
from glm_jax.tasks.result import Result, mean, perplexity
from glm_jax.tokenizer import SpecialTokens, Tokenizer


class Passage(NamedTuple):
    """Token ids of a passage and of its last word, with the word's leading space: int32 each."""

    where: str
    context: np.ndarray
    answer: np.ndarray


def evaluate(
    scorer: Scorer,
    tokenizer: Tokenizer,
    paths: Sequence[str | Path],
    slots: int,
    mask_id: int,
    limit: int = 0,
) -> Result:
    """Share of passages whose last word is predicted, and the perplexity of that word.

    Bidirectional: the passage is the context. Unidirectional: its first token is, the rest is given
    in Part B. An answer counts if each of its tokens is the argmax; no eop is asked for. The
    perplexity is exp of the mean negative log-likelihood of a word. (GLM 2021's LambadaDataset,
    strict.)

    Args:
      slots: of a row; longer passages lose their beginning.

    Raises:
      UserError: a passage of one word; see `files.read_texts`.
    """
    passages = [_passage(document, tokenizer) for document in read_texts(paths, limit)]
    results, perplexities = {}, {}
    for direction, make in (("bidirectional", bidirectional), ("unidirectional", unidirectional)):
        requests = [make(passage, slots, mask_id, scorer.special) for passage in passages]
        scores = [answer for (answer,) in scorer.score(requests)]
        results[direction] = mean([score.is_argmax.all() for score in scores])
        nll = -sum(score.log_probs.sum(dtype=np.float64) for score in scores)
        perplexities[direction] = perplexity(nll, len(scores))
    return Result("accuracy", results, {"perplexity": perplexities})


def split_last_word(document: Document) -> tuple[str, str]:
    """The text before the last white-space word, stripped, and the word with a leading space.

    Raises:
      UserError: there is nothing before the word.
    """
    words = document.text.split()
    if len(words) < 2:
        raise UserError(f"{document.path}:{document.line}: a passage needs at least two words")
    return document.text[: document.text.rfind(words[-1])].strip(), " " + words[-1]


def bidirectional(passage: Passage, slots: int, mask_id: int, special: SpecialTokens) -> Request:
    """`[CLS] passage mask eos`, then the answer."""
    context = _fitted(passage, slots)
    return continuation(context, [passage.answer], mask_id, special, eos=True)


def unidirectional(passage: Passage, slots: int, mask_id: int, special: SpecialTokens) -> Request:
    """`[CLS] first-token mask eos`, then the rest of the passage, given, and the answer."""
    context = _fitted(passage, slots)
    text = np.concatenate([context[1:], passage.answer])
    given = len(text) - len(passage.answer)
    return continuation(context[:1], [text], mask_id, special, given=given, eos=True)


def _passage(document: Document, tokenizer: Tokenizer) -> Passage:
    where = f"{document.path}:{document.line}"
    context, answer = split_last_word(document)
    return Passage(where, tokenizer.encode(context), tokenizer.encode(answer))


def _fitted(passage: Passage, slots: int) -> np.ndarray:
    with located(passage.where):
        return fit_left(passage.context, len(passage.answer), slots, eos=True)
