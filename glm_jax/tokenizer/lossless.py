"""Our own kind: a SentencePiece model under a contract of fixed special ids and lossless text."""

import hashlib
import pathlib
from collections.abc import Mapping

import numpy as np
import sentencepiece

from glm_jax.errors import UserError
from glm_jax.tokenizer.base import MODEL_FILE, Tokenizer, sentencepiece_processor
from glm_jax.tokenizer.special import SPECIAL_PIECES, SpecialTokens

KIND = "sentencepiece-bpe"

# SentencePiece writes a space as U+2581, so a literal one would come back as a space. Its UTF-8
# bytes as byte pieces come back as they are.
_SPACE_MARK = "\u2581"

# What a lossy normaliser or whitespace rule would change.
_PROBE = " \t a  b\r\n\x00\u3000Ａｆ①ﬁe\u0301é\u200b中文，龘\U0001f600\U00020000  \n"


class LosslessTokenizer(Tokenizer, kind=KIND):
    """A vocabulary of `train`: `decode(encode(text)) == text` for any valid text."""

    model_file = MODEL_FILE

    def __init__(self, directory: pathlib.Path, model: bytes):
        """Use `Tokenizer.load`, which checks the contract."""
        super().__init__(directory, model, SpecialTokens(), hashlib.sha256(model).hexdigest())
        self._processor = sentencepiece_processor(model, directory / MODEL_FILE)
        self._space_mark_ids = [
            self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()
        ]

    @classmethod
    def from_files(cls, directory: pathlib.Path, model: bytes, info: Mapping) -> Tokenizer:
        del info  # it describes where the vocabulary comes from
        _check_contract(
            sentencepiece_processor(model, directory / MODEL_FILE), directory / MODEL_FILE
        )
        return cls(directory, model)

    def __reduce__(self):
        return type(self), (self.dir, self.model)

    @property
    def vocab_size(self) -> int:
        return self._processor.vocab_size()

    @property
    def pieces(self) -> list[str]:
        return self._processor.id_to_piece(list(range(self.vocab_size)))

    @property
    def control_ids(self) -> np.ndarray:
        return np.arange(len(SPECIAL_PIECES), dtype=np.int32)

    def _encode_batch(self, texts: list[str], num_threads: int) -> list[np.ndarray]:
        batch = self._processor.encode_as_numpy(texts, num_threads=num_threads)
        return [
            self._encode_around_space_marks(text) if _SPACE_MARK in text else ids
            for text, ids in zip(texts, batch, strict=True)
        ]

    def _encode_around_space_marks(self, text: str) -> np.ndarray:
        ids = []
        for i, part in enumerate(text.split(_SPACE_MARK)):
            ids += self._space_mark_ids if i else []
            ids += self._processor.encode(part)
        return np.array(ids, np.int32)

    def _decode(self, ids: np.ndarray) -> str:
        return self._processor.decode(ids.tolist())


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
