"""The vocabularies of released GLM checkpoints, read from the files of their hub folders.

Ids are taken from the files; control symbols without a place in them follow the last piece, in the
order in which the published tokenizers add them (`data_utils/tokenization.py` and
`tokenization_glm.py` of THUDM/GLM, `tokenization_chatglm.py` of ChatGLM-6B, ChatGLM2/3 and GLM-4).
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2

from glm_jax.errors import UserError
from glm_jax.tokenizer import build_json
from glm_jax.tokenizer.base import read_file, sentencepiece_processor
from glm_jax.tokenizer.icetk import LONGEST_BLANK, TAB, blank
from glm_jax.tokenizer.imported import ICETK, PLAIN, ImportedInfo
from glm_jax.tokenizer.json_file import JSON_FILE, json_tokenizer

_TASK_MASKS = ("[gMASK]", "[sMASK]", "[dBLOCK]")
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_MEDIA = tuple(f"<|{edge}_of_{what}|>" for what in ("image", "video") for edge in ("begin", "end"))

# Fields of SpecialTokens -> names in the vocabulary; a field without a name is None, and smask and
# gmask without a place are the mask.
_PIECE = {"sop": "<|startofpiece|>", "eop": "<|endofpiece|>"}
_GLM = {"smask": "[sMASK]", "gmask": "[gMASK]", "dblock": "[dBLOCK]", **_PIECE}
_BRACKETS = {
    "mask": "[MASK]",
    "smask": "[sMASK]",
    "gmask": "[gMASK]",
    "sop": "<sop>",
    "eop": "<eop>",
}
_BERT_NAMES = {"pad": "[PAD]", "unk": "[UNK]", "eos": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_END = {"pad": "<|endoftext|>", "eos": "<|endoftext|>"}
_GPT2_NAMES = {**_END, "unk": "[UNK]", "cls": "[CLS]", "mask": "[MASK]"}
_ROBERTA_NAMES = {"pad": "</s>", "unk": "<unk>", "eos": "</s>", "cls": "<s>", "mask": "<mask>"}
_CHATGLM_NAMES = {
    "pad": "<pad>",
    "unk": "<unk>",
    "eos": "</s>",
    "cls": "<ENC>",
    "dblock": "<dBLOCK>",
}
_CHATGLM2_NAMES = {"pad": "<unk>", "unk": "<unk>", "eos": "</s>"}
_UNUSED_HERE = ("[SEP]", "<pad>")  # of BERT and RoBERTa; no text for all that

# In the order of their ids. ChatGLM2/3 call two of them `sop` and `eop`; as added tokens of a
# tokenizer.json these would be found inside ordinary words.
_CHATGLM2_ADDED = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
_CHATGLM_ADDED = (*_CHATGLM2_ADDED[:3], "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family's folder is recognised and read."""

    files: tuple[str, ...]
    read: Callable[[Path], tuple[bytes, ImportedInfo]]


def detect(folder: Path) -> str:
    """The family of a hub folder, by its files.

    Raises:
      UserError: none of the files that a family has is there.
    """
    if _has(folder, JSON_FILE) and _is_glm4_json(folder):
        return "glm4"
    for name in ("chatglm", "glm_chinese", "glm_bert"):
        if _has(folder, *FAMILIES[name].files):
            return name
    if _has(folder, "vocab.json", "merges.txt"):
        vocab = _read_json(folder / "vocab.json")
        return "glm_roberta" if _ROBERTA_NAMES["mask"] in vocab else "glm_gpt2"
    if _has(folder, "tokenizer.model"):
        if build_json.read_tiktoken(read_file(folder / "tokenizer.model")):
            return "glm4"
        return "chatglm3" if _names_roles(folder) else "chatglm2"
    wanted = "; ".join(f"{name}: {' + '.join(family.files)}" for name, family in FAMILIES.items())
    raise UserError(f"{folder}: no tokenizer of a GLM family; looked for {wanted}")


def read(folder: Path, family: str) -> tuple[bytes, ImportedInfo]:
    """The vocabulary file and the description of `family` that `folder` holds.

    Raises:
      UserError: a file is missing or damaged, or a special token has another id than it must.
    """
    missing = [name for name in FAMILIES[family].files if not _has(folder, name)]
    is_glm4 = family == "glm4" and _has(folder, "tokenizer.model")
    if missing and not is_glm4:
        raise UserError(f"{folder}: {family} needs {', '.join(missing)}, which is not there")
    model, info = FAMILIES[family].read(folder)
    _check_named_ids(folder, _vocabulary(model, info))
    return model, info


def _read_bert(folder: Path) -> tuple[bytes, ImportedInfo]:
    lines = _read_text(folder / "vocab.txt").removesuffix("\n").split("\n")
    vocab = {line.rstrip("\r"): index for index, line in enumerate(lines)}
    config = _read_json(folder / "tokenizer_config.json", optional=True)
    has_capitals = any(piece[0].isupper() and piece[0].isascii() for piece in vocab if piece)
    lowercase = config.get("do_lower_case", not has_capitals)
    added = [*_PIECE.values(), *(_TASK_MASKS if "[gMASK]" in _named_ids(folder) else ())]
    names = _GLM | _BERT_NAMES

    def build(specials: Sequence[dict]) -> bytes:
        return build_json.wordpiece(vocab, specials, lowercase=lowercase)

    return _json_family("glm_bert", folder / "vocab.txt", vocab, added, names, build)


def _read_gpt2(folder: Path) -> tuple[bytes, ImportedInfo]:
    vocab, merges = _read_json(folder / "vocab.json"), _read_merges(folder / "merges.txt")
    added = [*_PIECE.values(), "[CLS]", "[MASK]", "[SEP]", "[UNK]", *_task_masks(folder)]

    def build(specials: Sequence[dict]) -> bytes:
        return build_json.gpt2(vocab, merges, specials)

    names = _GLM | _GPT2_NAMES
    return _json_family("glm_gpt2", folder / "vocab.json", vocab, added, names, build)


def _read_roberta(folder: Path) -> tuple[bytes, ImportedInfo]:
    vocab, merges = _read_json(folder / "vocab.json"), _read_merges(folder / "merges.txt")
    added = [*_PIECE.values(), *_task_masks(folder)]

    def build(specials: Sequence[dict]) -> bytes:
        return build_json.gpt2(vocab, merges, specials)

    names = _GLM | _ROBERTA_NAMES
    return _json_family("glm_roberta", folder / "vocab.json", vocab, added, names, build)


def _read_chinese(folder: Path) -> tuple[bytes, ImportedInfo]:
    added = ["<|endoftext|>", "[SEP]", "[CLS]", "[MASK]", "[UNK]", "[unused_5]", *_PIECE.values()]
    added += ["[sMASK]", "[gMASK]", "[dBLOCK]"]
    path = folder / "cog-pretrain.model"
    return _sentencepiece_family("glm_chinese", path, read_file(path), added, _GLM | _GPT2_NAMES)


def _read_chatglm(folder: Path) -> tuple[bytes, ImportedInfo]:
    path = folder / "ice_text.model"
    size = _read_json(folder / "config.json", optional=True).get("vocab_size", 0)
    if size >= 150_000:
        raise UserError(
            f"{folder / 'config.json'}: vocab_size {size} is the first release of ChatGLM-6B, with "
            "20000 image tokens in front; use the files from April 2023 on (130528)"
        )
    model = _with_icetk_pieces(read_file(path), path)
    names = _BRACKETS | _CHATGLM_NAMES
    return _sentencepiece_family("chatglm", path, model, [], names, ICETK)


def _read_chatglm2(folder: Path) -> tuple[bytes, ImportedInfo]:
    return _read_chatglm2_or_3("chatglm2", folder, _CHATGLM2_ADDED)


def _read_chatglm3(folder: Path) -> tuple[bytes, ImportedInfo]:
    return _read_chatglm2_or_3("chatglm3", folder, [*_CHATGLM2_ADDED, *_ROLES])


def _read_chatglm2_or_3(
    family: str, folder: Path, added: Sequence[str]
) -> tuple[bytes, ImportedInfo]:
    path = folder / "tokenizer.model"
    names = _BRACKETS | _CHATGLM2_NAMES
    return _sentencepiece_family(family, path, read_file(path), added, names)


def _read_glm4(folder: Path) -> tuple[bytes, ImportedInfo]:
    if _has(folder, JSON_FILE):
        path = folder / JSON_FILE
        model = read_file(path)
        return model, _json_info("glm4", path, model, _BRACKETS | _END)
    path = folder / "tokenizer.model"
    ranks = build_json.read_tiktoken(read_file(path))
    if ranks is None:
        raise UserError(
            f"{path}: not the tiktoken file of GLM-4 (a base64 token and its rank a line, ranks "
            f"from 0 on); use {JSON_FILE} of the native release, such as glm-4-9b-hf"
        )

    def build(specials: Sequence[dict]) -> bytes:
        return build_json.tiktoken(ranks, specials)

    added = ["<|endoftext|>", *_CHATGLM2_ADDED, *_ROLES, *_MEDIA]
    return _json_family("glm4", path, dict.fromkeys(ranks), added, _BRACKETS | _END, build)


FAMILIES = {
    "glm_bert": Family(("vocab.txt",), _read_bert),
    "glm_gpt2": Family(("vocab.json", "merges.txt"), _read_gpt2),
    "glm_roberta": Family(("vocab.json", "merges.txt"), _read_roberta),
    "glm_chinese": Family(("cog-pretrain.model",), _read_chinese),
    "chatglm": Family(("ice_text.model",), _read_chatglm),
    "chatglm2": Family(("tokenizer.model",), _read_chatglm2),
    "chatglm3": Family(("tokenizer.model",), _read_chatglm3),
    "glm4": Family((JSON_FILE,), _read_glm4),
}


def _json_family(
    family: str,
    path: Path,
    vocab: Mapping,
    added: Sequence[str],
    names: Mapping[str, str],
    build: Callable[[Sequence[dict]], bytes],
) -> tuple[bytes, ImportedInfo]:
    """The special tokens that have a place in `vocab` stay there; the `added` ones follow it."""
    places = {name: vocab[name] for name in (*names.values(), *_UNUSED_HERE) if name in vocab}
    places |= {name: len(vocab) + i for i, name in enumerate(added)}
    masks = {names[field] for field in ("mask", "smask", "gmask")}
    specials = [
        build_json.added_token(name, index, lstrip=name in masks) for name, index in places.items()
    ]
    model = build(specials)
    return model, _json_info(family, path, model, names)


def _json_info(family: str, path: Path, model: bytes, names: Mapping[str, str]) -> ImportedInfo:
    tokenizer = json_tokenizer(model, path)
    vocab = tokenizer.get_vocab()
    return ImportedInfo(
        kind="tokenizer_json",
        family=family,
        vocab_size=max(vocab.values()) + 1,
        sha256=hashlib.sha256(model).hexdigest(),
        special_tokens=_special_ids(names, vocab, path),
        added_pieces=[],
    )


def _sentencepiece_family(
    family: str,
    path: Path,
    model: bytes,
    added: Sequence[str],
    names: Mapping[str, str],
    text_rules: str = PLAIN,
) -> tuple[bytes, ImportedInfo]:
    processor = sentencepiece_processor(model, path)
    size = processor.vocab_size()
    vocab = {processor.id_to_piece(i): i for i in range(size)}
    vocab |= {name: size + i for i, name in enumerate(added)}
    info = ImportedInfo(
        kind="sentencepiece",
        family=family,
        vocab_size=size + len(added),
        sha256=hashlib.sha256(model).hexdigest(),
        special_tokens=_special_ids(names, vocab, path),
        added_pieces=list(added),
        text_rules=text_rules,
    )
    return model, info


def _special_ids(
    names: Mapping[str, str], vocab: Mapping[str, int], path: Path
) -> dict[str, int | None]:
    ids = {field: vocab.get(name) for field, name in names.items()}
    ids = {"unk": None, "cls": None, "dblock": None} | ids
    ids |= {field: ids["mask"] for field in ("smask", "gmask") if ids[field] is None}
    for field in ("pad", "eos", "mask", "sop", "eop"):
        if ids[field] is None:
            raise UserError(f"{path}: no {names[field]} among the {len(vocab)} pieces ({field})")
    return ids


def _with_icetk_pieces(model: bytes, path: Path) -> bytes:
    """The model with the symbols that the code of ChatGLM-6B adds when its file lacks them.

    Symbols that a literal text could produce become control symbols.
    """
    sentencepiece_processor(model, path)  # says what is wrong with a damaged file
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    types = sentencepiece_model_pb2.ModelProto.SentencePiece
    specials = [*_CHATGLM_ADDED, *_CHATGLM_NAMES.values()]
    if not any(piece.piece == "[MASK]" for piece in proto.pieces):
        for name in _CHATGLM_ADDED:
            proto.pieces.add(piece=name, score=0.0, type=types.CONTROL)
        for name in (TAB, *map(blank, range(2, LONGEST_BLANK + 1))):
            proto.pieces.add(piece=name, score=0.0, type=types.USER_DEFINED)
        for byte in range(256):
            proto.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=types.BYTE)
        proto.trainer_spec.byte_fallback = True
    for piece in proto.pieces:
        if piece.piece in specials and piece.type in (types.USER_DEFINED, types.NORMAL):
            piece.type = types.CONTROL
    return proto.SerializeToString()


def _vocabulary(model: bytes, info: ImportedInfo) -> dict[str, int]:
    if info.kind == "tokenizer_json":
        return json_tokenizer(model, Path(JSON_FILE)).get_vocab()
    processor = sentencepiece_processor(model, Path("tokenizer.model"))
    size = processor.vocab_size()
    pieces = [*processor.id_to_piece(list(range(size))), *info.added_pieces]
    return {piece: index for index, piece in enumerate(pieces)}


def _check_named_ids(folder: Path, vocab: Mapping[str, int]) -> None:
    for name, index in _named_ids(folder).items():
        if name in vocab and vocab[name] != index:
            raise UserError(
                f"{folder}: {name} is {index} in added_tokens.json or tokenizer_config.json, its "
                f"place in the vocabulary is {vocab[name]}"
            )


def _named_ids(folder: Path) -> dict[str, int]:
    """Ids that the folder states beside its vocabulary, by name."""
    named = dict(_read_json(folder / "added_tokens.json", optional=True))
    path = folder / "tokenizer_config.json"
    config = _read_json(path, optional=True)
    try:
        for index, token in (config.get("added_tokens_decoder") or {}).items():
            named[token["content"]] = int(index)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: added_tokens_decoder does not list tokens by id") from error
    return named


def _task_masks(folder: Path) -> tuple[str, ...]:
    """The task masks, unless the folder lists its added tokens without them."""
    named = _named_ids(folder)
    is_listed = _PIECE["sop"] in named
    return () if is_listed and "[gMASK]" not in named else _TASK_MASKS


def _is_glm4_json(folder: Path) -> bool:
    added = _read_json(folder / JSON_FILE).get("added_tokens") or []
    try:
        return set(_BRACKETS.values()) <= {token["content"] for token in added}
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / JSON_FILE}: added_tokens is no list of tokens") from error


def _names_roles(folder: Path) -> bool:
    files = ("tokenization_chatglm.py", "tokenizer_config.json")
    return any(_has(folder, name) and _ROLES[0] in _read_text(folder / name) for name in files)


def _has(folder: Path, *names: str) -> bool:
    return all((folder / name).is_file() for name in names)


def _read_merges(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in _read_text(path).splitlines() if line]
    pairs = [tuple(line.split(" ")) for line in lines if not line.startswith("#version")]
    for pair in pairs:
        if len(pair) != 2:
            raise UserError(f"{path}: a merge must be two pieces, got {' '.join(pair)!r}")
    return pairs


def _read_json(path: Path, *, optional: bool = False) -> dict:
    if optional and not path.is_file():
        return {}
    try:
        content = json.loads(read_file(path))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold an object, got {type(content).__name__}")
    return content


def _read_text(path: Path) -> str:
    try:
        return read_file(path).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error}") from error
