"""Texts, a tokenizer and prepared datasets of seconds, and how to compare them."""

import hashlib
import json
from pathlib import Path

import numpy as np

from glm_jax import prepare, tokenizer
from glm_jax.data.shards import SPLITS
from glm_jax.data.sources import TokenStream
from glm_jax.preparation.options import Options

ENGLISH = [f"Line {i}: the quick brown fox jumps over the lazy dog.\nAgain!" for i in range(40)]
CHINESE = [f"第{i}行：敏捷的棕色狐狸跳过了懒狗。" for i in range(60)]


def make_tokenizer(directory: Path) -> str:
    texts = {"en": ENGLISH, "zh": CHINESE}
    tokenizer.save(directory, tokenizer.train(ENGLISH + CHINESE, 360), texts)
    return str(directory)


def write_lines(path: Path, records) -> str:
    """A .jsonl file of texts or of records."""
    lines = [{"text": record} if isinstance(record, str) else record for record in records]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def run(inputs, tokenizer_dir, out, overwrite=False, num_processes=None, **options) -> dict:
    return prepare.prepare(
        inputs,
        tokenizer_dir,
        str(out),
        Options(**options),
        overwrite=overwrite,
        num_processes=num_processes,
    )


def read(out, name, split) -> np.ndarray:
    stream = TokenStream(str(out / name), name, split)
    return stream.read(0, stream.length)


def documents(out, name, split, tokenizer_dir) -> list[str]:
    tok = tokenizer.Tokenizer.load(tokenizer_dir)
    tokens = read(out, name, split)
    ends = np.flatnonzero(tokens == tok.special.eos) + 1
    assert ends[-1] == len(tokens)
    parts = np.split(tokens, ends[:-1])
    assert all(part[0] == tok.special.cls for part in parts)
    return tok.decode_batch(parts)


def all_documents(out, name, tokenizer_dir) -> list[str]:
    return [text for split in SPLITS for text in documents(out, name, split, tokenizer_dir)]


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
