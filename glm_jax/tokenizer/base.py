"""What every kind of tokenizer can do, and how a tokenizer folder is opened."""

import abc
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import sentencepiece

from glm_jax.errors import UserError
from glm_jax.tokenizer.special import SpecialTokens

MODEL_FILE = "tokenizer.model"
INFO_FILE = "tokenizer_info.json"


class Tokenizer(abc.ABC):
    """A tokenizer folder, loaded: a vocabulary file and `tokenizer_info.json`, which says its kind.

    Text never produces a control symbol: "[MASK]" in a text is ordinary characters. Instances
    pickle.

    Attributes:
      dir: the folder.
      special: ids of the control symbols.
      fingerprint: SHA-256 that data, runs and exports share.
    """

    model_file: ClassVar[str]
    _kinds: ClassVar[dict[str, type["Tokenizer"]]] = {}

    def __init_subclass__(cls, kind: str = "", **arguments):
        super().__init_subclass__(**arguments)
        if kind:
            Tokenizer._kinds[kind] = cls

    def __init__(
        self, directory: pathlib.Path, model: bytes, special: SpecialTokens, fingerprint: str
    ):
        """Use `Tokenizer.load`, which checks the folder."""
        self.dir = directory
        self.special = special
        self.fingerprint = fingerprint
        self.model = model

    @staticmethod
    def load(directory: str | pathlib.Path) -> "Tokenizer":
        """Loads and checks a folder that `tokenizers/train.py` or `tokenizers/convert.py` wrote.

        Raises:
          UserError: a missing or damaged file, an unknown kind, or a vocabulary that breaks the
            contract of its kind.
        """
        directory = pathlib.Path(directory)
        info = _read_info(directory / INFO_FILE)
        kind = Tokenizer._kinds.get(info["kind"])
        if kind is None:
            known = ", ".join(map(repr, Tokenizer._kinds))
            raise UserError(
                f"{directory / INFO_FILE}: kind must be one of {known}, got {info['kind']!r}"
            )
        model = read_file(directory / kind.model_file)
        _check_sha256(directory, kind.model_file, model, info["sha256"])
        return kind.from_files(directory, model, info)

    @staticmethod
    def kind_named(kind: str) -> type["Tokenizer"]:
        """The class of a kind that exists."""
        return Tokenizer._kinds[kind]

    @classmethod
    @abc.abstractmethod
    def from_files(cls, directory: pathlib.Path, model: bytes, info: Mapping) -> "Tokenizer":
        """The tokenizer of a vocabulary file and of what `tokenizer_info.json` says.

        Raises:
          UserError: the contract of the kind is broken.
        """

    @property
    def files(self) -> tuple[str, str]:
        """Names of the files of the folder."""
        return self.model_file, INFO_FILE

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, special tokens and reserved ones included."""
        return len(self.pieces)

    @property
    @abc.abstractmethod
    def pieces(self) -> list[str]:
        """The string of every id; a space is U+2581 or itself, a byte piece is like "<0x0A>"."""

    @property
    @abc.abstractmethod
    def control_ids(self) -> np.ndarray:
        """Ids that stand for no text: special and reserved ones, and <unk>; int32, ascending."""

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
        return self._encode_batch(list(texts), num_threads)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of `ids` [n]; control symbols are "", broken UTF-8 is U+FFFD.

        Raises:
          UserError: an id outside the vocabulary.
        """
        ids = np.asarray(ids, np.int64)
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if outside.size:
            raise UserError(f"token id {outside[0]} is outside the vocabulary of {self.vocab_size}")
        return self._decode(ids)

    def decode_batch(self, batch: Iterable[Sequence[int] | np.ndarray]) -> list[str]:
        """Returns `decode(ids)` for each sequence of ids."""
        return [self.decode(ids) for ids in batch]

    @abc.abstractmethod
    def _encode_batch(self, texts: list[str], num_threads: int) -> list[np.ndarray]: ...

    @abc.abstractmethod
    def _decode(self, ids: np.ndarray) -> str: ...


def read_file(path: pathlib.Path) -> bytes:
    """The bytes of a file.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def sentencepiece_processor(
    model: bytes, path: pathlib.Path
) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece with a model file.

    Raises:
      UserError: it is no such file; `path` is how the message calls it.
    """
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(model)
    except RuntimeError as error:
        raise UserError(f"{path}: not a SentencePiece model, or truncated") from error
    return processor


def _read_info(path: pathlib.Path) -> dict:
    try:
        info = json.loads(read_file(path))
        _ = info["kind"], info["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a tokenizer description: {error!r}") from error
    return info


def _check_sha256(directory: pathlib.Path, name: str, model: bytes, expected: str) -> None:
    found = hashlib.sha256(model).hexdigest()
    if found != expected:
        raise UserError(
            f"{directory / name}: damaged or replaced: its sha256 is {found}, "
            f"{INFO_FILE} says {expected}"
        )


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text has a lone surrogate, {text[error.start]!r}, at character {error.start}"
        ) from error
