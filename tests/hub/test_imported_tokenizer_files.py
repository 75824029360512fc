"""Exported imported tokenizers give our ids in plain transformers."""

import gzip
import itertools
import json

import pytest
import stand_ins

from glm_jax.hub.tokenizer_files import write_tokenizer
from glm_jax.tokenizer import families
from glm_jax.tokenizer.imported import save_imported

transformers = pytest.importorskip("transformers", reason="needs transformers")

pytestmark = pytest.mark.torch  # transformers comes with it

LINES = 2500  # of each language
# Models of the unigram kind and of the byte-pair kind, with and without normalisation.
VARIANTS = [
    *((make, {}) for make in stand_ins.FAMILIES.values()),
    (stand_ins.glm_chinese, {"model_type": "bpe"}),
    (stand_ins.chatglm, {"model_type": "bpe"}),
    (stand_ins.chatglm, {"normalization_rule_name": "identity"}),
]


def exported(make, folder, texts=stand_ins.TEXTS, **changes):
    """Our tokenizer, and the exported one as AutoTokenizer loads it."""
    hub, out = folder / "hub", folder / "out"
    hub.mkdir()
    out.mkdir()
    make(hub, texts, **changes)
    ours = save_imported(folder / "tokenizer", *families.read(hub, families.detect(hub)))
    write_tokenizer(ours, out, max_length=512)
    return ours, transformers.AutoTokenizer.from_pretrained(out, trust_remote_code=False)


def check(ours, auto, texts):
    ids = auto(texts, add_special_tokens=False, split_special_tokens=True).input_ids
    assert ids == [expected.tolist() for expected in ours.encode_batch(texts)]
    for line in ids[:300]:
        assert auto.decode(line, skip_special_tokens=True) == ours.decode(line)


@pytest.mark.parametrize(("make", "changes"), VARIANTS)
def test_ids_text_and_special_tokens(make, changes, tmp_path):
    ours, auto = exported(make, tmp_path, **changes)
    check(ours, auto, [*stand_ins.ODD_TEXTS, *stand_ins.TEXTS[:8]])
    special = ours.special
    assert len(auto) == ours.vocab_size
    for name in ("pad", "unk", "eos", "cls", "mask"):
        assert getattr(auto, f"{name}_token_id") == getattr(special, name)
    for index in (special.mask, special.smask, special.gmask, special.sop, special.eop):
        assert auto(ours.pieces[index], add_special_tokens=False).input_ids == [index]
        assert auto.decode([index], skip_special_tokens=True) == ""


def test_what_stands_around_a_text(tmp_path):
    for name in ("glm_chinese", "chatglm2"):
        (tmp_path / name).mkdir()
        ours, auto = exported(stand_ins.FAMILIES[name], tmp_path / name)
        text, special = ours.encode("the cat").tolist(), ours.special
        around = [special.cls, *text, special.eos] if special.start else None
        assert auto("the cat").input_ids == (around or [special.gmask, special.sop, *text])


@pytest.fixture(scope="module")
def real_lines(fixtures) -> list[str]:
    lines = []
    for name in ("corpus_en", "corpus_zh"):
        path = fixtures.parent / "data" / f"{name}.jsonl.gz"
        if not path.is_file():
            pytest.skip(f"no {path}")
        with gzip.open(path, "rt") as rows:
            texts = (json.loads(row)["text"] for row in rows)
            found = itertools.chain.from_iterable(text.splitlines() for text in texts)
            lines += itertools.islice(found, LINES)
    return lines


REAL_OPTIONS = {"character_coverage": 0.98, "vocab_size": 2000}


@pytest.mark.slow
@pytest.mark.parametrize(("make", "changes"), VARIANTS)
def test_ids_of_real_text(make, changes, tmp_path, real_lines):
    is_sentencepiece = make in (stand_ins.glm_chinese, stand_ins.chatglm, stand_ins.chatglm2)
    options = (REAL_OPTIONS if is_sentencepiece else {}) | changes
    sample = stand_ins.TEXTS if make is stand_ins.chatglm3 else real_lines[::10]
    # All lines for each family as it is released; a fifth of them for variations of its model.
    lines = real_lines[:: 5 if changes else 1]
    check(*exported(make, tmp_path, sample, **options), lines)
