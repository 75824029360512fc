"""Training a vocabulary of our own kind, and the folder it is kept in."""

import dataclasses
import hashlib
import io
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import sentencepiece

from glm_jax.errors import UserError
from glm_jax.folders import written_whole
from glm_jax.tokenizer.base import INFO_FILE, MODEL_FILE, sentencepiece_processor
from glm_jax.tokenizer.fertility import Fertility, measure_fertility
from glm_jax.tokenizer.lossless import KIND
from glm_jax.tokenizer.special import SPECIAL_PIECES, SpecialTokens

# The trainer drops longer sentences; four bytes a character at most.
_MAX_SENTENCE_BYTES = 16384
_MAX_SENTENCE_CHARACTERS = _MAX_SENTENCE_BYTES // 4

_FIRST_CONTROL_SYMBOL = SpecialTokens.cls  # SentencePiece has options of its own for pad, unk, eos


@dataclasses.dataclass(frozen=True)
class TokenizerInfo:
    """What `tokenizer_info.json` says. Dictionaries are by language, 'en' and 'zh'."""

    vocab_size: int
    sha256: str  # of tokenizer.model
    sampled_documents: dict[str, int]  # documents that the vocabulary was trained on
    sampled_bytes: dict[str, int]  # their UTF-8 bytes
    fertility: dict[str, Fertility]  # on texts held out of it
    kind: str = KIND


def train(texts: Iterable[str], vocab_size: int, character_coverage: float = 0.9995) -> bytes:
    """Trains a byte-pair vocabulary that keeps the contract; returns the model file.

    The result depends on the texts and their order alone. Texts are read line by line, so that a
    line feed is always a token of its own.

    Args:
        texts: what to train on.
        vocab_size: number of pieces, special tokens and reserved ones included.
        character_coverage: share of the characters of the texts that get a piece of their own; the
            rarest of them become bytes.

    Raises:
        UserError: `vocab_size` is larger or smaller than this text allows; the limit is named.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=False,
            split_digits=True,
            character_coverage=character_coverage,
            max_sentence_length=_MAX_SENTENCE_BYTES,
            pad_id=SpecialTokens.pad,
            unk_id=SpecialTokens.unk,
            eos_id=SpecialTokens.eos,
            bos_id=-1,
            control_symbols=list(SPECIAL_PIECES[_FIRST_CONTROL_SYMBOL:]),
            num_threads=1,  # the number is written into the model file and would change its sha256
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _training_error(str(error), vocab_size) from error
    return model.getvalue()


def save(
    directory: str | pathlib.Path,
    model: bytes,
    trained_on: Mapping[str, Sequence[str]],
    held_out: Mapping[str, Sequence[str]] | None = None,
) -> TokenizerInfo:
    """Writes a tokenizer folder, all of it or nothing.

    Args:
        directory: must not exist; its parents are made.
        model: what `train` returned.
        trained_on: the texts it was trained on by language, for the description of the tokenizer.
        held_out: texts it was not trained on, to measure it on, where there are some.

    Raises:
        UserError: `directory` exists or cannot be written.
    """
    directory = pathlib.Path(directory)
    if directory.exists():
        raise UserError(f"{directory}: already exists; a tokenizer is never overwritten")
    processor = sentencepiece_processor(model, directory / MODEL_FILE)
    info = TokenizerInfo(
        vocab_size=processor.vocab_size(),
        sha256=hashlib.sha256(model).hexdigest(),
        sampled_documents={language: len(texts) for language, texts in trained_on.items()},
        sampled_bytes={
            language: sum(len(text.encode()) for text in texts)
            for language, texts in trained_on.items()
        },
        fertility={
            language: measure_fertility(processor, texts, spaced=language != "zh")
            for language, texts in (held_out or {}).items()
            if texts
        },
    )
    with written_whole(directory) as partial:
        (partial / MODEL_FILE).write_bytes(model)
        (partial / INFO_FILE).write_text(json.dumps(dataclasses.asdict(info), indent=2) + "\n")
    return info


def _sentences(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _MAX_SENTENCE_CHARACTERS):
                yield line[start : start + _MAX_SENTENCE_CHARACTERS]


def _training_error(message: str, vocab_size: int) -> UserError:
    if match := re.search(r"value <= (\d+)", message):
        limit = f"too large for this text: {match[1]} is the largest possible"
    elif match := re.search(r"required_chars\. \d+ vs (\d+)", message):
        limit = f"too small for this text: {match[1]} is the smallest possible"
    else:
        return UserError(f"the vocabulary cannot be trained: {message}")
    return UserError(f"vocab_size {vocab_size} is {limit}")
