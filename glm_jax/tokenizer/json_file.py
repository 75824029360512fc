"""Imported `tokenizer.json` files: WordPiece (BERT), byte-level BPE (GPT-2, RoBERTa, GLM-4)."""

import pathlib

import numpy as np
import tokenizers

from glm_jax.errors import UserError
from glm_jax.tokenizer.imported import ImportedInfo, ImportedTokenizer

JSON_FILE = "tokenizer.json"


class JsonTokenizer(ImportedTokenizer, kind="tokenizer_json"):
    """A tokenizer of the `tokenizers` library; special tokens in a text are ordinary characters."""

    model_file = JSON_FILE

    def __init__(self, directory: pathlib.Path, model: bytes, info: ImportedInfo):
        super().__init__(directory, model, info)
        self._library = json_tokenizer(model, directory / JSON_FILE)
        self._library.encode_special_tokens = True
        self._library.no_truncation()
        self._library.no_padding()
        vocab = self._library.get_vocab()
        unknown = getattr(self._library.model, "unk_token", None)
        self.unknown = vocab.get(unknown)
        self._pieces = self._find_pieces(vocab)
        self._control_ids = self._find_control_ids(vocab)

    def _find_pieces(self, vocab: dict[str, int]) -> list[str]:
        added = self._library.get_added_tokens_decoder()
        is_byte_level = isinstance(self._library.decoder, tokenizers.decoders.ByteLevel)
        pieces = [""] * (max(vocab.values()) + 1)
        for piece, index in vocab.items():
            is_text = is_byte_level and index not in added
            pieces[index] = self._library.decoder.decode([piece]) if is_text else piece
        return pieces

    def _find_control_ids(self, vocab: dict[str, int]) -> np.ndarray:
        added = self._library.get_added_tokens_decoder()
        special = {index for index, token in added.items() if token.special}
        special |= {index for index in self.info.special_tokens.values() if index is not None}
        special |= set(range(self.vocab_size)) - set(vocab.values())
        special |= set() if self.unknown is None else {self.unknown}
        return np.array(sorted(special), np.int32)


def json_tokenizer(model: bytes, path: pathlib.Path) -> tokenizers.Tokenizer:
    """The `tokenizers` library with the content of a tokenizer.json.

    Raises:
      UserError: it is no such file; `path` is how the message calls it.
    """
    try:
        return tokenizers.Tokenizer.from_str(model.decode())
    except Exception as error:  # the library raises nothing narrower
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a tokenizer.json: {reason}") from error
