"""Vocabularies of released checkpoints: what `tokenizer_info.json` says of them."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping

import numpy as np
import tokenizers

from glm_jax.errors import UserError
from glm_jax.folders import written_whole
from glm_jax.tokenizer.base import INFO_FILE, Tokenizer
from glm_jax.tokenizer.special import SpecialTokens

PLAIN = "plain"
ICETK = "icetk"
TEXT_RULES = (PLAIN, ICETK)


@dataclasses.dataclass(frozen=True)
class ImportedInfo:
    """The description of an imported vocabulary."""

    kind: str
    family: str  # as `families.FAMILIES` names it
    vocab_size: int
    sha256: str  # of the vocabulary file
    special_tokens: dict[str, int | None]  # by field of SpecialTokens
    added_pieces: list[str]  # control symbols that follow the pieces of the file, in id order
    text_rules: str = PLAIN  # of TEXT_RULES, what is done to text before the file's own rules

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the ids: one file serves families with other special ids."""
        decisive = dataclasses.asdict(self)
        del decisive["family"]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


class ImportedTokenizer(Tokenizer):
    """A vocabulary with the ids of a released checkpoint.

    How much of a text comes back from `decode(encode(text))` is a property of the family: all of it
    with a byte-level vocabulary, its normal form with the others.

    Attributes:
      info: its description.
      unknown: the id that the vocabulary gives to what it cannot spell, or None.
    """

    # Set by each kind.
    unknown: int | None
    _library: tokenizers.Tokenizer
    _pieces: list[str]
    _control_ids: np.ndarray

    def __init__(self, directory: pathlib.Path, model: bytes, info: ImportedInfo):
        """Use `Tokenizer.load`, which checks the description."""
        super().__init__(directory, model, SpecialTokens(**info.special_tokens), info.fingerprint)
        self.info = info

    def __reduce__(self):
        return type(self), (self.dir, self.model, self.info)

    @property
    def pieces(self) -> list[str]:
        """The string of every id: for a byte-level vocabulary the text of its bytes, with the
        `icetk` rules white space for its symbol."""
        return list(self._pieces)

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    @property
    def control_ids(self) -> np.ndarray:
        return self._control_ids

    def check_import(self) -> None:
        """What is checked once, when a vocabulary is taken over; see `SentencePieceTokenizer`."""

    @classmethod
    def from_files(cls, directory: pathlib.Path, model: bytes, info: Mapping) -> Tokenizer:
        path = directory / INFO_FILE
        tokenizer = cls(directory, model, _parse(info, path))
        _check_special_ids(tokenizer, path)
        _check_text_gives_no_control_symbol(tokenizer, directory / cls.model_file)
        return tokenizer

    def _encode_batch(self, texts: list[str], num_threads: int) -> list[np.ndarray]:
        del num_threads  # the library takes the threads it finds
        batch = self._library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in batch]

    def _decode(self, ids: np.ndarray) -> str:
        return self._library.decode(ids[~np.isin(ids, self._control_ids)].tolist())


def save_imported(directory: str | pathlib.Path, model: bytes, info: ImportedInfo) -> Tokenizer:
    """Writes the folder of an imported vocabulary, all of it or nothing, and loads it.

    Raises:
      UserError: `directory` exists or cannot be written, or the vocabulary breaks the contract.
    """
    directory = pathlib.Path(directory)
    if directory.exists():
        raise UserError(f"{directory}: already exists; a tokenizer is never overwritten")
    with written_whole(directory) as partial:
        (partial / Tokenizer.kind_named(info.kind).model_file).write_bytes(model)
        (partial / INFO_FILE).write_text(json.dumps(dataclasses.asdict(info), indent=2) + "\n")
        Tokenizer.load(partial).check_import()
    return Tokenizer.load(directory)


def _parse(info: Mapping, path: pathlib.Path) -> ImportedInfo:
    try:
        parsed = ImportedInfo(**info)
        SpecialTokens(**parsed.special_tokens)
    except TypeError as error:
        raise UserError(f"{path}: not a tokenizer description: {error}") from error
    if parsed.text_rules not in TEXT_RULES:
        raise UserError(
            f"{path}: text_rules must be one of {', '.join(TEXT_RULES)}, got {parsed.text_rules!r}"
        )
    return parsed


def _check_special_ids(tokenizer: ImportedTokenizer, path: pathlib.Path) -> None:
    size = tokenizer.vocab_size
    if size != tokenizer.info.vocab_size:
        raise UserError(f"{path}: vocab_size is {tokenizer.info.vocab_size}, the files have {size}")
    for name, index in tokenizer.info.special_tokens.items():
        if index is not None and not 0 <= index < size:
            raise UserError(f"{path}: special_tokens.{name} {index} is outside the {size} pieces")


def _check_text_gives_no_control_symbol(tokenizer: ImportedTokenizer, path: pathlib.Path) -> None:
    control = tokenizer.control_ids[tokenizer.control_ids != tokenizer.unknown]
    names = [tokenizer.pieces[index] for index in control]
    for name, ids in zip(names, tokenizer.encode_batch(names), strict=True):
        if np.isin(ids, control).any():
            raise UserError(f"{path}: the text {name!r} produces a control symbol")
