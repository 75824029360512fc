"""The SentencePiece tokenizer and its contract: special tokens at fixed ids, lossless text."""

import dataclasses
import hashlib
import io
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import sentencepiece

from glm_jax.errors import UserError
from glm_jax.folders import written_whole

MODEL_FILE = "tokenizer.model"
INFO_FILE = "tokenizer_info.json"
KIND = "sentencepiece-bpe"

# SentencePiece writes a space as U+2581, so a literal one would come back as a space. Its UTF-8
# bytes as byte pieces come back as they are.
_SPACE_MARK = "\u2581"

# What a lossy normaliser or whitespace rule would change.
_PROBE = " \t a  b\r\n\x00\u3000Ａｆ①ﬁe\u0301é\u200b中文，龘\U0001f600\U00020000  \n"

# The trainer drops longer sentences; four bytes a character at most.
_MAX_SENTENCE_BYTES = 16384
_MAX_SENTENCE_CHARACTERS = _MAX_SENTENCE_BYTES // 4


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Ids of the control symbols of GLM. They are never produced from text, only inserted by id."""

    pad: int = 0
    unk: int = 1
    eos: int = 2  # end of a document
    cls: int = 3  # [CLS], first token of a document (GLM's ENC)
    mask: int = 4  # [MASK], a token blank
    smask: int = 5  # [sMASK], a sentence blank
    gmask: int = 6  # [gMASK], a document blank
    sop: int = 7  # <sop>, first input of a span
    eop: int = 8  # <eop>, last target of a span
    dblock: int = 9  # [dBLOCK], block noise


# The first pieces of every vocabulary, by id: the fields of SpecialTokens, then reserved ones.
SPECIAL_PIECES = (
    "<pad>",
    "<unk>",
    "</s>",
    "[CLS]",
    "[MASK]",
    "[sMASK]",
    "[gMASK]",
    "<sop>",
    "<eop>",
    "[dBLOCK]",
    *(f"[unused{i}]" for i in range(6)),
)

# A blank in a text, and the white space on its left: an answer brings its own.
BLANK = re.compile(r"\s*(\[MASK\]|\[sMASK\]|\[gMASK\])")

_FIRST_CONTROL_SYMBOL = SpecialTokens.cls  # SentencePiece has options of its own for pad, unk, eos


@dataclasses.dataclass(frozen=True)
class TokenizerInfo:
    """What `tokenizer_info.json` says. Dictionaries are by language, 'en' and 'zh'."""

    vocab_size: int
    sha256: str  # of tokenizer.model
    sampled_documents: dict[str, int]  # documents that the vocabulary was trained on
    sampled_bytes: dict[str, int]  # their UTF-8 bytes
    tokens_per_character: dict[str, float]  # on that sample
    kind: str = KIND


class Tokenizer:
    """A tokenizer folder, loaded. Lossless: `decode(encode(text)) == text` for any valid text.

    Text never produces a control symbol: "[MASK]" in a text is six ordinary characters. Instances
    pickle.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        processor: sentencepiece.SentencePieceProcessor,
        fingerprint: str,
    ):
        """Use `Tokenizer.load`, which checks the contract."""
        self.dir = directory
        self.special = SpecialTokens()
        self.fingerprint = fingerprint
        self._processor = processor
        self._space_mark_ids = [
            processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()
        ]

    @classmethod
    def load(cls, directory: str | pathlib.Path) -> "Tokenizer":
        """Loads and checks the folder that `save` or `python tokenizers/train.py` wrote.

        Raises:
            UserError: a missing or damaged file, special tokens at other ids, or a model that
                changes text (a normaliser, no byte fallback).
        """
        directory = pathlib.Path(directory)
        model = _read(directory / MODEL_FILE)
        fingerprint = hashlib.sha256(model).hexdigest()
        _check_info(directory / INFO_FILE, fingerprint)
        processor = _processor(model, directory / MODEL_FILE)
        _check_contract(processor, directory / MODEL_FILE)
        return cls(directory, processor, fingerprint)

    @property
    def vocab_size(self) -> int:
        """Number of pieces, special tokens and reserved ones included."""
        return self._processor.vocab_size()

    @property
    def pieces(self) -> list[str]:
        """The string of every id; a space is U+2581, a byte piece is like "<0x0A>"."""
        return self._processor.id_to_piece(list(range(self.vocab_size)))

    @property
    def control_ids(self) -> np.ndarray:
        """Ids that no text produces, the reserved ones included: int32 [16]."""
        return np.arange(len(SPECIAL_PIECES), dtype=np.int32)

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of `text`: int32 [n], n = 0 for "". No special token is added.

        Raises:
            UserError: a lone surrogate in `text`, which has no UTF-8 form.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[np.ndarray]:
        """Returns `encode(text)` for each text."""
        for text in texts:
            _check_encodable(text)
        batch = self._processor.encode_as_numpy(list(texts), num_threads=num_threads)
        return [
            self._encode_around_space_marks(text) if _SPACE_MARK in text else ids
            for text, ids in zip(texts, batch, strict=True)
        ]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of `ids` [n]; control symbols are "", broken UTF-8 is U+FFFD.

        Raises:
            UserError: an id outside the vocabulary.
        """
        ids = np.asarray(ids, np.int64)
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if outside.size:
            raise UserError(f"token id {outside[0]} is outside the vocabulary of {self.vocab_size}")
        return self._processor.decode(ids.tolist())

    def decode_batch(self, batch: Iterable[Sequence[int] | np.ndarray]) -> list[str]:
        """Returns `decode(ids)` for each sequence of ids."""
        return [self.decode(ids) for ids in batch]

    def _encode_around_space_marks(self, text: str) -> np.ndarray:
        ids = []
        for i, part in enumerate(text.split(_SPACE_MARK)):
            ids += self._space_mark_ids if i else []
            ids += self._processor.encode(part)
        return np.array(ids, np.int32)


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
    directory: str | pathlib.Path, model: bytes, trained_on: Mapping[str, Sequence[str]]
) -> TokenizerInfo:
    """Writes a tokenizer folder, all of it or nothing.

    Args:
        directory: must not exist; its parents are made.
        model: what `train` returned.
        trained_on: the texts it was trained on by language, for the description of the tokenizer.

    Raises:
        UserError: `directory` exists or cannot be written.
    """
    directory = pathlib.Path(directory)
    if directory.exists():
        raise UserError(f"{directory}: already exists; a tokenizer is never overwritten")
    processor = _processor(model, directory / MODEL_FILE)
    info = TokenizerInfo(
        vocab_size=processor.vocab_size(),
        sha256=hashlib.sha256(model).hexdigest(),
        sampled_documents={language: len(texts) for language, texts in trained_on.items()},
        sampled_bytes={
            language: sum(len(text.encode()) for text in texts)
            for language, texts in trained_on.items()
        },
        tokens_per_character={
            language: _tokens_per_character(processor, texts)
            for language, texts in trained_on.items()
        },
    )
    with written_whole(directory) as partial:
        (partial / MODEL_FILE).write_bytes(model)
        (partial / INFO_FILE).write_text(json.dumps(dataclasses.asdict(info), indent=2) + "\n")
    return info


def _tokens_per_character(
    processor: sentencepiece.SentencePieceProcessor, texts: Sequence[str]
) -> float:
    tokens = sum(len(processor.encode(text)) for text in texts)
    return round(tokens / sum(map(len, texts)), 4)


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


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text has a lone surrogate, {text[error.start]!r}, at character {error.start}"
        ) from error


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _check_info(path: pathlib.Path, fingerprint: str) -> None:
    try:
        info = json.loads(_read(path))
        kind, sha256 = info["kind"], info["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a tokenizer description: {error!r}") from error
    if kind != KIND:
        raise UserError(f"{path}: kind must be {KIND!r}, got {kind!r}")
    if sha256 != fingerprint:
        raise UserError(
            f"{path.with_name(MODEL_FILE)}: damaged or replaced: its sha256 is {fingerprint}, "
            f"{path.name} says {sha256}"
        )


def _processor(model: bytes, path: pathlib.Path) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(model)
    except RuntimeError as error:
        raise UserError(f"{path}: not a SentencePiece model, or truncated") from error
    return processor


def _check_contract(processor: sentencepiece.SentencePieceProcessor, path: pathlib.Path) -> None:
    for index, piece in enumerate(SPECIAL_PIECES):
        found = processor.id_to_piece(index) if index < processor.vocab_size() else None
        if found != piece:
            raise UserError(f"{path}: id {index} must be {piece}, it is {found}")
        if index != SpecialTokens.unk and not processor.is_control(index):
            raise UserError(f"{path}: {piece} must be a control symbol; text could produce it")
    if not all(processor.is_byte(processor.piece_to_id(f"<0x{b:02X}>")) for b in range(256)):
        raise UserError(f"{path}: the model must have byte_fallback")
    if processor.decode(processor.encode(_PROBE)) != _PROBE:
        raise UserError(
            f"{path}: the model changes text; it must be trained without normalisation "
            "(normalization_rule_name identity, remove_extra_whitespaces off)"
        )
    if processor.encode("a", out_type=str)[0].startswith(_SPACE_MARK):
        raise UserError(f"{path}: the model puts a space before text (add_dummy_prefix)")
