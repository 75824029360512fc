"""The tokenizer as `AutoTokenizer.from_pretrained` reads it, without code of ours.

`tokenizer.json` states the SentencePiece model as a byte-pair encoding of the `tokenizers` library:
same pieces, same ids, same text. Literal control symbols are the one difference: as usual for that
library, "[MASK]" in a text becomes the token, unless it is called with split_special_tokens=True.
"""

import json
import shutil
from pathlib import Path

import sentencepiece

from glm_jax.tokenizer import Tokenizer

MODEL_FILE = "tokenizer.model"
_SPACE_MARK = "\u2581"


def write_tokenizer(tokenizer: Tokenizer, out: Path, max_length: int) -> None:
    """Writes tokenizer.json, its two small companions and the SentencePiece model into `out`.

    Args:
      max_length: positions of the model, which transformers warns about.
    """
    specials = _special_tokens(tokenizer)
    shutil.copyfile(tokenizer.dir / MODEL_FILE, out / MODEL_FILE)
    _write_json(out / "tokenizer.json", _tokenizer_json(tokenizer, specials))
    _write_json(out / "special_tokens_map.json", _special_tokens_map(tokenizer))
    _write_json(out / "tokenizer_config.json", _tokenizer_config(tokenizer, specials, max_length))


def _tokenizer_json(tokenizer: Tokenizer, specials: dict[int, dict]) -> dict:
    # A space is itself in this vocabulary, not U+2581: so a literal U+2581 falls back to its bytes,
    # as glm_jax encodes it, and no normaliser is needed that would take the two for one.
    vocab = {piece.replace(_SPACE_MARK, " "): i for i, piece in enumerate(tokenizer.pieces)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **token} for i, token in specials.items()],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": _template(tokenizer),
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": tokenizer.pieces[tokenizer.special.unk],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _merges(tokenizer, vocab),
        },
    }


def _merges(tokenizer: Tokenizer, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best piece first.

    SentencePiece makes the best piece it can, the leftmost if there are several. Among the ways to
    make one piece, the longer left part comes first: in a run of one character, merging from the
    left leaves the odd one on the right.
    """
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.dir / MODEL_FILE))
    merged = {
        piece: model.get_score(i)
        for piece, i in vocab.items()
        if not (model.is_control(i) or model.is_byte(i) or model.is_unknown(i))
    }
    merges = []
    for piece in sorted(merged, key=merged.get, reverse=True):
        for cut in range(len(piece) - 1, 0, -1):
            left, right = piece[:cut], piece[cut:]
            if left in merged and right in merged:
                merges.append((left, right))
    return merges


def _template(tokenizer: Tokenizer) -> dict:
    """[CLS] text </s>, and with a second text [CLS] text </s> text </s>."""
    special = tokenizer.special
    cls, eos = tokenizer.pieces[special.cls], tokenizer.pieces[special.eos]
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    start, end = ({"SpecialToken": {"id": name, "type_id": 0}} for name in (cls, eos))
    return {
        "type": "TemplateProcessing",
        "single": [start, first, end],
        "pair": [start, first, end, second, end],
        "special_tokens": {
            cls: {"id": cls, "ids": [special.cls], "tokens": [cls]},
            eos: {"id": eos, "ids": [special.eos], "tokens": [eos]},
        },
    }


def _special_tokens(tokenizer: Tokenizer) -> dict[int, dict]:
    """Id -> fields of the `AddedToken` of each control symbol, and of <unk>."""
    special = tokenizer.special
    blanks = (special.mask, special.smask, special.gmask)
    return {
        i: {
            "content": tokenizer.pieces[i],
            "single_word": False,
            "lstrip": i in blanks,  # white space left of a blank belongs to its answer
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i in tokenizer.control_ids.tolist()
    }


def _special_tokens_map(tokenizer: Tokenizer) -> dict:
    special, pieces = tokenizer.special, tokenizer.pieces
    named = {"pad": special.pad, "unk": special.unk, "eos": special.eos, "cls": special.cls}
    named |= {"mask": special.mask}
    others = (special.smask, special.gmask, special.sop, special.eop, special.dblock)
    result = {f"{name}_token": pieces[i] for name, i in named.items()}
    return result | {"additional_special_tokens": [pieces[i] for i in others]}


def _tokenizer_config(tokenizer: Tokenizer, specials: dict[int, dict], max_length: int) -> dict:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **_special_tokens_map(tokenizer),
        "added_tokens_decoder": {str(i): token for i, token in specials.items()},
    }


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")
