"""Imported SentencePiece models: cog-pretrain (Chinese GLM), ice_text (ChatGLM-6B), ChatGLM2/3."""

import itertools
import json
import pathlib
import unicodedata

import numpy as np
import sentencepiece

from glm_jax.errors import UserError
from glm_jax.tokenizer import icetk, sentencepiece_json
from glm_jax.tokenizer.base import MODEL_FILE, sentencepiece_processor
from glm_jax.tokenizer.imported import ICETK, ImportedInfo, ImportedTokenizer
from glm_jax.tokenizer.json_file import json_tokenizer

_CONJOINING_HANGUL = frozenset(map(chr, range(0x1100, 0x1200)))
_ROUNDING = 1e-3  # of SentencePiece, which adds scores up in single precision


class SentencePieceTokenizer(ImportedTokenizer, kind="sentencepiece"):
    """A SentencePiece model as released; ids behind its own are control symbols of the family.

    It runs as the `tokenizer.json` that an export writes (`sentencepiece_json`), so that a model is
    trained on the very ids that it is later given.

    With the `icetk` rules a line feed is <n>, a tab <|tab|> and two or more spaces <|blank_k|>, and
    no space is put before a text (`add_dummy_prefix=False` of `SPTokenizer.encode`, ChatGLM-6B).
    With the `plain` rules the model alone decides, a dummy space included.
    """

    model_file = MODEL_FILE

    def __init__(self, directory: pathlib.Path, model: bytes, info: ImportedInfo):
        super().__init__(directory, model, info)
        processor = self._processor = sentencepiece_processor(model, directory / MODEL_FILE)
        self.unknown = processor.unk_id()
        self.json_parts = sentencepiece_json.parts(model, info.text_rules, directory / MODEL_FILE)
        self._library = json_tokenizer(
            json.dumps({"version": "1.0", **self.json_parts}).encode(), directory / MODEL_FILE
        )
        pieces = [*processor.id_to_piece(list(range(len(processor)))), *info.added_pieces]
        is_icetk = info.text_rules == ICETK
        self._pieces = [icetk.spelled(piece) for piece in pieces] if is_icetk else pieces
        self._control_ids = _find_control_ids(processor, len(self._pieces))

    def check_import(self) -> None:
        """Compares with SentencePiece itself on the text of every piece and on pairs of them.

        Names of control symbols and of bytes, and texts with combining characters, are left out:
        see the exceptions of `sentencepiece_json`.

        Raises:
          UserError: the ids differ, and not between segmentations of the same score.
        """
        silent = set(self._control_ids.tolist())
        texts = [
            piece.replace("\u2581", " ")
            for index, piece in enumerate(self.pieces)
            if index not in silent and not self._processor.is_byte(index)
        ]
        texts += [first + second for first, second in itertools.pairwise(texts)]
        texts = [text for text in texts if not any(map(_is_combining, text))]
        for text, ids in zip(texts, self.encode_batch(texts), strict=True):
            expected = self._sentencepiece_ids(text)
            if ids.tolist() != expected and not self._is_tie(ids.tolist(), expected):
                raise UserError(
                    f"{self.dir / MODEL_FILE}: the text {text!r} has the ids {expected} in "
                    f"SentencePiece and {ids.tolist()} in the tokenizer.json that says the same"
                )

    def _sentencepiece_ids(self, text: str) -> list[int]:
        if self.info.text_rules == ICETK:
            return self._processor.encode(icetk.LINE_FEED + icetk.symbols(text))[2:]
        return self._processor.encode(text)

    def _is_tie(self, first: list[int], second: list[int]) -> bool:
        if self.json_parts["model"]["type"] != "Unigram":
            return False
        score = self._processor.get_score
        return abs(sum(map(score, first)) - sum(map(score, second))) < _ROUNDING


def _is_combining(character: str) -> bool:
    return unicodedata.category(character).startswith("M") or character in _CONJOINING_HANGUL


def _find_control_ids(
    processor: sentencepiece.SentencePieceProcessor, vocab_size: int
) -> np.ndarray:
    size = processor.vocab_size()
    silent = (processor.is_control, processor.is_unused, processor.is_unknown)
    inside = [i for i in range(size) if any(is_silent(i) for is_silent in silent)]
    return np.array([*inside, *range(size, vocab_size)], np.int32)
