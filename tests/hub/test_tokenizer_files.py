"""The exported tokenizer gives the ids of SentencePiece, and loads without code of ours."""

import gzip
import json
import random

import pytest

pytest.importorskip("transformers", reason="needs transformers")

pytestmark = pytest.mark.torch  # transformers comes with it

# Runs of one character are where the order of equal merges shows; the rest is byte fallback.
ALPHABET = " the中国，12\t\n-—é𠀀▁\x00"


def _lines(texts: list[str], count: int) -> list[str]:
    rng = random.Random(0)
    words = [word for text in texts for word in text.split()]
    lines = [
        rng.choice(["", " "]).join(rng.choices(words, k=rng.randint(1, 12)))
        for _ in range(count // 2)
    ]
    for width in range(1, len(ALPHABET) + 1):
        for _ in range(count // 2 // len(ALPHABET)):
            lines.append("".join(rng.choices(ALPHABET[:width], k=rng.randint(0, 40))))
    return lines


def test_ids_and_text_are_those_of_sentencepiece(texts, tokenizer, hub_tokenizer):
    lines = [*_lines(texts, 4000), "<0x0A>", "[MASK] <sop> </s>", "e\u0301\r\n\u3000Ａ\U0001f600"]
    hub = hub_tokenizer(lines, add_special_tokens=False, split_special_tokens=True).input_ids
    for line, ids in zip(lines, hub, strict=True):
        assert ids == tokenizer.encode(line).tolist(), repr(line)
        assert hub_tokenizer.decode(ids) == line


def test_ids_of_real_text(tokenizer, hub_tokenizer, fixtures):
    for name in ("corpus_en", "corpus_zh"):
        path = fixtures.parent / "data" / f"{name}.jsonl.gz"
        if not path.is_file():
            pytest.skip(f"no {path}")
        with gzip.open(path, "rt") as rows:
            lines = [
                line
                for _, row in zip(range(1500), rows, strict=False)
                for line in json.loads(row)["text"].splitlines()
            ]
        lines = lines[:3000]
        hub = hub_tokenizer(lines, add_special_tokens=False, split_special_tokens=True).input_ids
        assert hub == [ids.tolist() for ids in tokenizer.encode_batch(lines)]


def test_a_blank_takes_the_white_space_on_its_left(tokenizer, hub_tokenizer):
    special = tokenizer.special
    ids = hub_tokenizer("the \t [MASK] cat[gMASK]").input_ids
    the, cat = tokenizer.encode("the").tolist(), tokenizer.encode(" cat").tolist()
    assert ids == [special.cls, *the, special.mask, *cat, special.gmask, special.eos]


def test_special_tokens_keep_their_ids(tokenizer, hub_tokenizer):
    assert len(hub_tokenizer) == tokenizer.vocab_size
    assert hub_tokenizer.padding_side == "left"
    for name in ("pad", "unk", "eos", "cls", "mask"):
        assert getattr(hub_tokenizer, f"{name}_token_id") == getattr(tokenizer.special, name)
    for name, piece in (("sop", "<sop>"), ("eop", "<eop>"), ("gmask", "[gMASK]")):
        assert hub_tokenizer.convert_tokens_to_ids(piece) == getattr(tokenizer.special, name)
    assert hub_tokenizer.decode([special for special in range(16) if special != 1]) != ""
    assert hub_tokenizer.decode(range(16), skip_special_tokens=True) == ""


def test_padding_goes_to_either_side(hub_tokenizer):
    texts = ["the [MASK]", "今天天气[MASK]，我们去公园散步吧！"]
    left = hub_tokenizer(texts, padding=True, return_tensors="np")
    right = hub_tokenizer(texts, padding=True, padding_side="right", return_tensors="np")
    assert set(left) == {"input_ids", "attention_mask"}
    assert left.input_ids[0, 0] == right.input_ids[0, -1] == hub_tokenizer.pad_token_id
