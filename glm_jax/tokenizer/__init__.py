"""Tokenizers: text to ids and back, whatever family a vocabulary is of."""

from glm_jax.tokenizer.base import INFO_FILE, MODEL_FILE, Tokenizer
from glm_jax.tokenizer.fertility import Fertility
from glm_jax.tokenizer.json_file import JsonTokenizer
from glm_jax.tokenizer.lossless import LosslessTokenizer
from glm_jax.tokenizer.sentencepiece_file import SentencePieceTokenizer
from glm_jax.tokenizer.special import BLANK, SPECIAL_PIECES, SpecialTokens
from glm_jax.tokenizer.training import TokenizerInfo, save, train

__all__ = [
    "BLANK",
    "INFO_FILE",
    "MODEL_FILE",
    "SPECIAL_PIECES",
    "Fertility",
    "JsonTokenizer",
    "LosslessTokenizer",
    "SentencePieceTokenizer",
    "SpecialTokens",
    "Tokenizer",
    "TokenizerInfo",
    "save",
    "train",
]
