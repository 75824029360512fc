"""The `tokenizer.json` of vocabularies that were released in older files."""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence

# Byte -> the character by which byte-level vocabularies write it (GPT-2's `bytes_to_unicode`).
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_CHARACTERS = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(256 + i) for i, byte in enumerate(_OTHERS)
}

# How the remote code of GLM-4 cuts text into words (`tokenization_chatglm.py`, glm-4-9b).
GLM4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def wordpiece(vocab: Mapping[str, int], specials: Sequence[dict], *, lowercase: bool) -> bytes:
    """BERT's WordPiece (`BertTokenizer`); `specials` are the results of `added_token`."""
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": lowercase,
    }
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": dict(vocab),
    }
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    return _dump(specials, normalizer, {"type": "BertPreTokenizer"}, decoder, model)


def gpt2(
    vocab: Mapping[str, int], merges: Sequence[Sequence[str]], specials: Sequence[dict]
) -> bytes:
    """The byte-level BPE of GPT-2 and RoBERTa, no space put before a text."""
    pre_tokenizer = _byte_level(use_regex=True)
    return _dump(specials, None, pre_tokenizer, _byte_level(), _bpe(vocab, merges))


def tiktoken(ranks: Mapping[bytes, int], specials: Sequence[dict]) -> bytes:
    """The byte-level BPE of GLM-4 from the ranks of its tiktoken file.

    tiktoken joins the two neighbours whose bytes together have the lowest rank and needs no merges;
    here they are every way to make a token of two others, lowest rank first. `ignore_merges` is
    its look-up of whole words.
    """
    spelled = {bytes_: "".join(map(BYTE_CHARACTERS.get, bytes_)) for bytes_ in ranks}
    vocab = {spelled[bytes_]: rank for bytes_, rank in ranks.items()}
    split = {
        "type": "Split",
        "pattern": {"Regex": GLM4_PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}
    model = _bpe(vocab, all_merges(sorted(vocab, key=vocab.get))) | {"ignore_merges": True}
    return _dump(specials, None, pre_tokenizer, _byte_level(), model)


def read_tiktoken(content: bytes) -> dict[bytes, int] | None:
    """Token -> rank of a tiktoken file, a base64 token and a rank a line; None if it is none."""
    ranks = {}
    try:
        for line in content.decode("ascii").splitlines():
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error):
        return None
    complete = sorted(ranks.values()) == list(range(len(ranks)))
    return ranks if ranks and complete else None


def all_merges(pieces: Iterable[str]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, in the order of `pieces`, best first.

    Among the ways to make one piece, the longer left part comes first: in a run of one character,
    merging from the left leaves the odd one on the right.
    """
    pieces = list(pieces)
    known = set(pieces)
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in known and piece[cut:] in known
    ]


def added_token(content: str, index: int, *, lstrip: bool = False) -> dict:
    """A special token as tokenizer.json lists it; `lstrip` takes the white space on its left."""
    return {
        "id": index,
        "content": content,
        "single_word": False,
        "lstrip": lstrip,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _byte_level(*, use_regex: bool = True) -> dict:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _bpe(vocab: Mapping[str, int], merges: Sequence[Sequence[str]]) -> dict:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(vocab),
        "merges": [list(pair) for pair in merges],
    }


def _dump(
    specials: Sequence[dict],
    normalizer: dict | None,
    pre_tokenizer: dict,
    decoder: dict,
    model: dict,
) -> bytes:
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(specials, key=lambda token: token["id"]),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
    return json.dumps(content, ensure_ascii=False, indent=1).encode()
