"""A SentencePiece model as the parts of a `tokenizer.json`: same pieces, same ids.

The `tokenizers` library segments text as SentencePiece does, with four rare exceptions:

* A unigram model adds scores up in single precision in SentencePiece, in double precision here: of
  two segmentations as good as each other ("V II I" and "V I II") it may take the other one.
* The library looks up its normalisation grapheme by grapheme: what is written with combining
  characters (conjoining Hangul, letters with accents behind them, a mark behind a full-width
  character) may stay as it is or lose its marks. Single code points all agree.
* Symbols that a byte-pair model takes as a whole (<n>, <|blank_2|>) are written as one private
  character, from U+100000 on: that very character in a text becomes the symbol.

* A unigram model sees the name of a control symbol in a text ("</s>") cut behind its first
  character, where SentencePiece may know a piece that goes over the cut.

What it cannot state at all is refused.
"""

import base64
import re
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from glm_jax.errors import UserError
from glm_jax.tokenizer.build_json import all_merges
from glm_jax.tokenizer.icetk import LINE_FEED, LONGEST_BLANK, TAB, blank
from glm_jax.tokenizer.imported import ICETK

_SPACE_MARK = "\u2581"
_FIRST_STAND_IN = 0x100000
_BYTE_NAME = "<0x[0-9A-F]{2}>"

_Proto = sentencepiece_model_pb2.ModelProto
_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
_Trainer = sentencepiece_model_pb2.TrainerSpec


def parts(model: bytes, text_rules: str, path: Path) -> dict:
    """`normalizer`, `pre_tokenizer`, `decoder` and `model` of the tokenizer.json.

    Args:
      model: the SentencePiece file; `path` is how messages call it.
      text_rules: see `imported.TEXT_RULES`.

    Raises:
      UserError: the model has something that a tokenizer.json cannot state.
    """
    proto = _Proto.FromString(model)
    _check(proto, path)
    has_rules = text_rules == ICETK
    adds_space = proto.normalizer_spec.add_dummy_prefix and not has_rules
    stand_ins = _stand_ins(proto)
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                *(_white_space_rules() if has_rules else []),
                *(_replace(piece, char) for piece, char in stand_ins.items()),
                *_normalizers(proto, adds_space=adds_space, at_start=not has_rules),
            ],
        },
        "pre_tokenizer": None if _is_bpe(proto) else _cut_names(proto),
        "decoder": _decoder(stand_ins, adds_space=adds_space, has_rules=has_rules),
        "model": _bpe(proto, stand_ins) if _is_bpe(proto) else _unigram(proto),
    }


def _check(proto: _Proto, path: Path) -> None:
    model_type = _Trainer.ModelType.Name(proto.trainer_spec.model_type)
    faults = {
        f"model_type {model_type}": model_type not in ("BPE", "UNIGRAM"),
        "treat_whitespace_as_suffix": proto.trainer_spec.treat_whitespace_as_suffix,
        "escape_whitespaces off": not proto.normalizer_spec.escape_whitespaces,
        "unused pieces": any(piece.type == _Piece.UNUSED for piece in proto.pieces),
    }
    for fault, is_there in faults.items():
        if is_there:
            raise UserError(f"{path}: {fault}: a tokenizer.json cannot state it")


def _is_bpe(proto: _Proto) -> bool:
    return proto.trainer_spec.model_type == _Trainer.BPE


def _white_space_rules() -> list[dict]:
    runs = [_replace(" " * k, blank(k)) for k in range(LONGEST_BLANK, 1, -1)]
    return [_replace("\n", LINE_FEED), _replace("\t", TAB), *runs]


def _stand_ins(proto: _Proto) -> dict[str, str]:
    """Symbol -> one character: a byte-pair model has no merges that would make the symbol."""
    if not _is_bpe(proto):
        return {}
    symbols = [piece.piece for piece in proto.pieces if piece.type == _Piece.USER_DEFINED]
    symbols.sort(key=len, reverse=True)  # SentencePiece takes the longest that fits
    return {symbol: chr(_FIRST_STAND_IN + i) for i, symbol in enumerate(symbols)}


def _normalizers(proto: _Proto, *, adds_space: bool, at_start: bool) -> list[dict]:
    """What SentencePiece does to a text: its character map, then its rules for spaces.

    Args:
      at_start: False with the icetk rules: there a text follows <n> and keeps its first space.
    """
    spec = proto.normalizer_spec
    steps = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        # The library takes CR LF for one character and looks up the first only.
        steps.append(_replace("\r\n", _normalized(proto, "\r\n")))
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        steps.append(_replace_regex(" {2,}", " "))
        steps.append(_replace_regex(r"\A +| +\z" if at_start else r" +\z", ""))
    if adds_space:
        steps.append({"type": "Prepend", "prepend": " "})
    return [*steps, _replace(" ", _SPACE_MARK)]


def _normalized(proto: _Proto, text: str) -> str:
    normalizer = sentencepiece.SentencePieceNormalizer(
        model_proto=proto.SerializeToString(),
        add_dummy_prefix=False,
        escape_whitespaces=False,
        remove_extra_whitespaces=False,
    )
    return normalizer.normalize(text)


def _cut_names(proto: _Proto) -> dict:
    """Takes the names of control symbols and bytes apart behind their first character.

    The library's unigram model would find them in a text; a byte-pair model cannot.
    """
    silent = (_Piece.CONTROL, _Piece.UNKNOWN)
    names = [re.escape(piece.piece) for piece in proto.pieces if piece.type in silent]
    names += [_BYTE_NAME] if _has_bytes(proto) else []
    pattern = f"(?={'|'.join(names)})."
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _unigram(proto: _Proto) -> dict:
    normal = [piece.score for piece in proto.pieces if piece.type == _Piece.NORMAL]
    best, worst = max(normal), min(normal)

    def score(piece: _Piece) -> float:
        if piece.type == _Piece.NORMAL:
            return piece.score
        if piece.type == _Piece.USER_DEFINED:  # SentencePiece's bonus, so that it is always taken
            return len(piece.piece) * best - 0.1
        return worst  # never read; the lowest score sets that of unknown characters

    return {
        "type": "Unigram",
        "unk_id": _unknown(proto),
        "vocab": [[piece.piece, score(piece)] for piece in proto.pieces],
        "byte_fallback": _has_bytes(proto),
    }


def _bpe(proto: _Proto, stand_ins: dict[str, str]) -> dict:
    normal = [piece for piece in proto.pieces if piece.type == _Piece.NORMAL]
    normal.sort(key=lambda piece: piece.score, reverse=True)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": proto.pieces[_unknown(proto)].piece,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": _has_bytes(proto),
        "ignore_merges": False,
        "vocab": {stand_ins.get(p.piece, p.piece): i for i, p in enumerate(proto.pieces)},
        "merges": all_merges(piece.piece for piece in normal),
    }


def _decoder(stand_ins: dict[str, str], *, adds_space: bool, has_rules: bool) -> dict:
    spelled = {LINE_FEED: "\n", TAB: "\t"} if has_rules else {}
    spelled |= {blank(k): " " * k for k in range(2, LONGEST_BLANK + 1)} if has_rules else {}
    symbols = stand_ins or {symbol: symbol for symbol in spelled}
    steps = [_replace(_SPACE_MARK, " ")]
    steps += [_replace(name, spelled.get(symbol, symbol)) for symbol, name in symbols.items()]
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if adds_space:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _unknown(proto: _Proto) -> int:
    return next(i for i, piece in enumerate(proto.pieces) if piece.type == _Piece.UNKNOWN)


def _has_bytes(proto: _Proto) -> bool:
    return any(piece.type == _Piece.BYTE for piece in proto.pieces)


def _replace(text: str, content: str) -> dict:
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def _replace_regex(pattern: str, content: str) -> dict:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
