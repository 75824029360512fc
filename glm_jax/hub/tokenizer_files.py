"""The tokenizer as `AutoTokenizer.from_pretrained` reads it, without code of ours.

`tokenizer.json` states every kind of tokenizer: same pieces, same ids, same text. Our own
SentencePiece models are a byte-pair encoding of the `tokenizers` library; imported ones are written
as they run here, and an imported tokenizer.json leaves as it came. Literal control symbols are the
one difference: as usual for that library, "[MASK]" in a text becomes the token, unless it is called
with split_special_tokens=True.
"""

import json
import shutil
from pathlib import Path

import sentencepiece

from glm_jax.tokenizer import JsonTokenizer, LosslessTokenizer, SentencePieceTokenizer, Tokenizer
from glm_jax.tokenizer.build_json import added_token, all_merges

_SPACE_MARK = "\u2581"


def write_tokenizer(tokenizer: Tokenizer, out: Path, max_length: int) -> None:
    """Writes tokenizer.json, its two small companions and the vocabulary file into `out`.

    Args:
      max_length: positions of the model, which transformers warns about.

    Raises:
      UserError: the tokenizer has something that a tokenizer.json cannot state.
    """
    specials = _special_tokens(tokenizer)
    shutil.copyfile(tokenizer.dir / tokenizer.model_file, out / tokenizer.model_file)
    if not isinstance(tokenizer, JsonTokenizer):
        _write_json(out / "tokenizer.json", _tokenizer_json(tokenizer, specials))
    _write_json(out / "special_tokens_map.json", _special_tokens_map(tokenizer))
    _write_json(out / "tokenizer_config.json", _tokenizer_config(tokenizer, specials, max_length))


def _tokenizer_json(
    tokenizer: LosslessTokenizer | SentencePieceTokenizer, specials: dict[int, dict]
) -> dict:
    if isinstance(tokenizer, SentencePieceTokenizer):
        parts = tokenizer.json_parts
    else:
        parts = _lossless_parts(tokenizer)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **token} for i, token in specials.items()],
        "post_processor": _template(tokenizer),
        **parts,
    }


def _lossless_parts(tokenizer: LosslessTokenizer) -> dict:
    # A space is itself in this vocabulary, not U+2581: so a literal U+2581 falls back to its bytes,
    # as glm_jax encodes it, and no normaliser is needed that would take the two for one.
    vocab = {piece.replace(_SPACE_MARK, " "): i for i, piece in enumerate(tokenizer.pieces)}
    return {
        "normalizer": None,
        "pre_tokenizer": None,
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


def _merges(tokenizer: LosslessTokenizer, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """SentencePiece makes the best piece it can, the leftmost if there are several."""
    model = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    merged = {
        piece: model.get_score(i)
        for piece, i in vocab.items()
        if not (model.is_control(i) or model.is_byte(i) or model.is_unknown(i))
    }
    return all_merges(sorted(merged, key=merged.get, reverse=True))


def _template(tokenizer: Tokenizer) -> dict:
    """[CLS] text </s>, and with a second text [CLS] text </s> text </s>.

    A family without [CLS] has [gMASK] <sop> text, as ChatGLM2/3 have it.
    """
    special = tokenizer.special
    ids = (special.cls, special.eos) if special.start else (special.gmask, special.sop)
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    names = [tokenizer.pieces[i] for i in ids]
    start, end = ({"SpecialToken": {"id": name, "type_id": 0}} for name in names)
    around = [[start, first, end], [start, first, end, second, end]]
    before = [[start, end, first], [start, end, first, second]]
    single, pair = around if special.start else before
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": {
            name: {"id": name, "ids": [i], "tokens": [name]}
            for name, i in zip(names, ids, strict=True)
        },
    }


def _special_tokens(tokenizer: Tokenizer) -> dict[int, dict]:
    """Id -> fields of the `AddedToken` of each control symbol, and of <unk>."""
    if isinstance(tokenizer, JsonTokenizer):
        tokens = {token["id"]: token for token in json.loads(tokenizer.model)["added_tokens"]}
        return _without_ids(tokens)
    special = tokenizer.special
    blanks = (special.mask, special.smask, special.gmask)
    # White space left of a blank belongs to its answer.
    tokens = {
        i: added_token(tokenizer.pieces[i], i, lstrip=i in blanks)
        for i in tokenizer.control_ids.tolist()
    }
    return _without_ids(tokens)


def _without_ids(tokens: dict[int, dict]) -> dict[int, dict]:
    return {i: {k: v for k, v in token.items() if k != "id"} for i, token in tokens.items()}


def _special_tokens_map(tokenizer: Tokenizer) -> dict:
    special, pieces = tokenizer.special, tokenizer.pieces
    named = {"pad": special.pad, "unk": special.unk, "eos": special.eos, "cls": special.cls}
    named |= {"mask": special.mask}
    others = (special.smask, special.gmask, special.sop, special.eop, special.dblock)
    others = {i: pieces[i] for i in others if i not in (None, special.mask)}
    result = {f"{name}_token": pieces[i] for name, i in named.items() if i is not None}
    return result | {"additional_special_tokens": list(others.values())}


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
