"""Vocabularies of released checkpoints: ids as published, text as their own code takes it."""

import itertools
import json
import pickle
import shutil

import numpy as np
import pytest
import sentencepiece
import stand_ins
import tokenizers
from commands import run_command
from sentencepiece import sentencepiece_model_pb2

from glm_jax import prepare
from glm_jax.config import from_dict
from glm_jax.data.dataset import open_dataset
from glm_jax.errors import UserError
from glm_jax.model.decoding import encode_context
from glm_jax.objective.spans import sentence_ends
from glm_jax.preparation.options import Options
from glm_jax.tasks.continuation import continuation
from glm_jax.tokenizer import INFO_FILE, Tokenizer, families
from glm_jax.tokenizer.build_json import GLM4_PATTERN
from glm_jax.tokenizer.imported import save_imported

LOSSLESS = ("glm_gpt2", "glm_roberta", "glm4", "glm4_tiktoken", "chatglm2", "chatglm3")


def convert(make, tmp_path, family=None, **changes):
    hub = tmp_path / "hub"
    hub.mkdir()
    make(hub, **changes)
    family = family or families.detect(hub)
    return save_imported(tmp_path / "tokenizer", *families.read(hub, family))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A converted stand-in of each family, by name."""
    return {
        name: convert(make, tmp_path_factory.mktemp(name))
        for name, make in stand_ins.FAMILIES.items()
    }


@pytest.fixture(params=stand_ins.FAMILIES)
def tokenizer(request, loaded):
    return loaded[request.param]


def test_the_family_is_seen_from_the_files(loaded):
    for name, tokenizer in loaded.items():
        assert tokenizer.info.family == name.removesuffix("_tiktoken")


def test_interface(tokenizer):
    texts = [*stand_ins.ODD_TEXTS, *stand_ins.TEXTS[:7]]
    batch = tokenizer.encode_batch(texts, num_threads=2)
    assert all(ids.dtype == np.int32 and ids.ndim == 1 for ids in batch)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text).tolist() for text in texts]
    assert len(tokenizer.pieces) == tokenizer.vocab_size
    assert tokenizer.decode(tokenizer.control_ids) == ""
    assert set(tokenizer.special.start) <= set(tokenizer.control_ids.tolist())
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint == Tokenizer.load(tokenizer.dir).fingerprint
    assert [ids.tolist() for ids in copy.encode_batch(texts)] == [ids.tolist() for ids in batch]
    with pytest.raises(UserError, match="outside the vocabulary"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(UserError, match="lone surrogate"):
        tokenizer.encode("\ud800")


def test_text_never_produces_a_control_symbol(tokenizer):
    control = tokenizer.control_ids[tokenizer.control_ids != tokenizer.unknown]
    for name in (tokenizer.pieces[index] for index in control):
        for text in (name, f"a{name}b", f"the {name} cat"):
            assert not np.isin(tokenizer.encode(text), control).any(), text


@pytest.mark.parametrize("name", LOSSLESS)
def test_round_trip(loaded, name):
    for text in (*stand_ins.ODD_TEXTS, *stand_ins.TEXTS[:7]):
        if "\u2581" not in text:  # SentencePiece takes it for a space
            assert loaded[name].decode(loaded[name].encode(text)) == text


def test_sentences_end_at_line_feeds_and_marks_of_both_languages(loaded):
    for name in ("glm_gpt2", "glm4", "chatglm", "chatglm2"):
        ends = sentence_ends(loaded[name].pieces)
        marks = ("\n", ".", "!") if name in ("glm_gpt2", "glm4") else ("\n", ".", "。")
        for text in ("the", "，", *marks):
            assert ends[loaded[name].encode(f"a{text}")].any() == (text in marks), (name, text)


def dummy_vocabulary(size, first=()):
    return [*first, *(f"piece{i}" for i in range(size - len(first)))]


def dummy_model(path, size, first):
    proto = sentencepiece_model_pb2.ModelProto()
    types = {"<unk>": stand_ins.Piece.UNKNOWN, "<s>": 3, "</s>": 3, "<pad>": 3, "<n>": 4}
    for i, piece in enumerate(dummy_vocabulary(size, first)):
        proto.pieces.add(piece=piece, score=-i, type=types.get(piece, stand_ins.Piece.NORMAL))
    proto.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    path.write_bytes(proto.SerializeToString())


def bert_pieces():
    pieces = dummy_vocabulary(30522)
    for index, name in (
        (0, "[PAD]"),
        (100, "[UNK]"),
        (101, "[CLS]"),
        (102, "[SEP]"),
        (103, "[MASK]"),
    ):
        pieces[index] = name
    return pieces


def full_size(name, folder):
    """Files of the published sizes, without useful pieces."""
    if name == "glm_bert":
        (folder / "vocab.txt").write_text("\n".join(bert_pieces()) + "\n")
    elif name in ("glm_gpt2", "glm_roberta"):
        size, first = (
            (50257, []) if name == "glm_gpt2" else (50265, ["<s>", "<pad>", "</s>", "<unk>"])
        )
        pieces = dummy_vocabulary(size, first)
        pieces[-1] = "<|endoftext|>" if name == "glm_gpt2" else "<mask>"
        (folder / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
    elif name == "glm_chinese":
        dummy_model(folder / "cog-pretrain.model", 50000, ["<unk>", "<s>", "</s>", "<n>"])
    elif name == "chatglm":
        first = ["<unk>", "<s>", "</s>", "<pad>", "<n>"]
        dummy_model(folder / "ice_text.model", 130000, first)
    elif name in ("chatglm2", "chatglm3"):
        dummy_model(folder / "tokenizer.model", 64789, ["<unk>", "<s>", "</s>"])
    else:
        ranks = {index.to_bytes(3, "big"): index for index in range(151329)}
        (folder / "tokenizer.model").write_bytes(stand_ins.tiktoken_file(ranks))


# pad, unk, eos, cls, mask, smask, gmask, sop, eop, dblock
PUBLISHED = {
    "glm_bert": (0, 100, 0, 101, 103, 103, 103, 30522, 30523, None),
    "glm_gpt2": (50256, 50262, 50256, 50259, 50260, 50264, 50263, 50257, 50258, 50265),
    "glm_roberta": (2, 3, 2, 0, 50264, 50268, 50267, 50265, 50266, 50269),
    "glm_chinese": (50000, 50004, 50000, 50002, 50003, 50008, 50009, 50006, 50007, 50010),
    "chatglm": (3, 0, 2, 130006, 130000, 130002, 130001, 130004, 130005, 130007),
    "chatglm2": (0, 0, 2, None, 64789, 64791, 64790, 64792, 64793, None),
    "chatglm3": (0, 0, 2, None, 64789, 64791, 64790, 64792, 64793, None),
    "glm4": (151329, None, 151329, None, 151330, 151332, 151331, 151333, 151334, None),
}
SIZES = {"glm_gpt2": 50266, "chatglm": 130344, "chatglm2": 64794, "chatglm3": 64798, "glm4": 151343}
FIELDS = ("pad", "unk", "eos", "cls", "mask", "smask", "gmask", "sop", "eop", "dblock")


@pytest.mark.parametrize("name", PUBLISHED)
def test_special_ids_of_the_published_sizes(name, tmp_path):
    full_size(name, tmp_path)
    _, info = families.read(tmp_path, name)
    assert tuple(info.special_tokens[field] for field in FIELDS) == PUBLISHED[name]
    assert info.vocab_size == SIZES.get(name, info.vocab_size)


def test_bert_has_task_masks_where_its_folder_names_them(tmp_path):
    full_size("glm_bert", tmp_path)
    named = {"<|startofpiece|>": 30522, "<|endofpiece|>": 30523, "[gMASK]": 30524, "[sMASK]": 30525}
    (tmp_path / "added_tokens.json").write_text(json.dumps(named))
    special = families.read(tmp_path, "glm_bert")[1].special_tokens
    assert (special["gmask"], special["smask"], special["dblock"]) == (30524, 30525, 30526)


def test_roberta_has_no_task_masks_where_its_folder_names_others_only(tmp_path):
    full_size("glm_roberta", tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<|startofpiece|>": 50265}')
    special = families.read(tmp_path, "glm_roberta")[1].special_tokens
    assert special["gmask"] == special["smask"] == special["mask"] == 50264


def published_chatglm(processor, text):
    """`SPTokenizer.encode(text, add_dummy_prefix=False)` of ChatGLM-6B, written out."""
    text = text.replace("\n", "<n>")
    text = text.replace("\t", "<|tab|>")
    for length in range(80, 1, -1):
        text = text.replace(" " * length, f"<|blank_{length}|>")
    return processor.encode("<n>" + text)[2:]


CHATGLM_MODELS = (
    {},
    {"model_type": "bpe"},
    {"remove_extra_whitespaces": True},
    {"normalization_rule_name": "identity", "model_type": "bpe"},
)


@pytest.mark.parametrize("changes", CHATGLM_MODELS)
def test_text_rules_of_chatglm(changes, tmp_path):
    tokenizer = convert(stand_ins.chatglm, tmp_path, **changes)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    for text in (*stand_ins.ODD_TEXTS, *stand_ins.TEXTS[:7]):
        assert tokenizer.encode(text).tolist() == published_chatglm(processor, text), repr(text)
    names = [processor.id_to_piece(int(i)) for i in tokenizer.encode("a\n\tb" + " " * 83)[1:]]
    assert names[:2] == ["<n>", "<|tab|>"]
    assert names[-2:] == ["<|blank_80|>", "<|blank_3|>"]
    for text in ("a\n\n  b\t c", "  the cat\n", "的 cat"):
        if not changes.get("remove_extra_whitespaces"):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_symbols_in_the_file_of_chatglm_are_those_that_its_code_adds(tmp_path):
    tokenizer = convert(stand_ins.chatglm, tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    (again / "ice_text.model").write_bytes(tokenizer.model)
    model, info = families.read(again, "chatglm")
    assert model == tokenizer.model
    assert info == tokenizer.info


SENTENCEPIECE_MODELS = (
    (stand_ins.glm_chinese, {}),
    (stand_ins.glm_chinese, {"model_type": "bpe"}),
    (stand_ins.glm_chinese, {"normalization_rule_name": "identity"}),
    (stand_ins.glm_chinese, {"remove_extra_whitespaces": False}),
    (stand_ins.chatglm2, {}),
    (stand_ins.chatglm2, {"model_type": "unigram"}),
)


@pytest.mark.parametrize(("make", "changes"), SENTENCEPIECE_MODELS)
def test_ids_are_those_of_sentencepiece(make, changes, tmp_path):
    tokenizer = convert(make, tmp_path, **changes)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    for text in (*stand_ins.ODD_TEXTS, *stand_ins.TEXTS[:7]):
        assert tokenizer.encode(text).tolist() == processor.encode(text), repr(text)


def slow_tiktoken(ranks, words):
    """Byte-pair encoding as tiktoken does it: the lowest rank of all neighbours, repeatedly."""
    ids = []
    for word in words:
        parts = [bytes([byte]) for byte in word.encode()]
        while word.encode() not in ranks or len(parts) > 1:
            joined = [ranks.get(a + b) for a, b in itertools.pairwise(parts)]
            found = [rank for rank in joined if rank is not None]
            if not found:
                break
            place = joined.index(min(found))
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def test_ids_of_a_tiktoken_file(loaded):
    regex = pytest.importorskip("regex", reason="needs regex, which comes with transformers")
    ranks = stand_ins.tiktoken_ranks()
    for text in (*stand_ins.ODD_TEXTS, *stand_ins.TEXTS[:7]):
        expected = slow_tiktoken(ranks, regex.findall(GLM4_PATTERN, text))
        assert loaded["glm4_tiktoken"].encode(text).tolist() == expected


def test_an_imported_json_keeps_its_bytes(loaded, tmp_path):
    stand_ins.glm4(tmp_path)
    assert loaded["glm4"].model == (tmp_path / "tokenizer.json").read_bytes()
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode("[gMASK]").ids == [loaded["glm4"].special.gmask]


def test_one_file_of_two_families_has_two_fingerprints(loaded):
    assert loaded["chatglm2"].info.sha256 == loaded["chatglm3"].info.sha256
    assert loaded["chatglm2"].fingerprint != loaded["chatglm3"].fingerprint


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text_rules": "other"}, "text_rules must be one of plain, icetk, got 'other'"),
        ({"vocab_size": 7}, r"vocab_size is 7, the files have \d+"),
        ({"special_tokens": {"pad": 10**6}}, "special_tokens.pad 1000000 is outside"),
        ({"surprise": 1}, "not a tokenizer description"),
    ],
)
def test_a_bad_description_is_noticed(loaded, tmp_path, change, reason):
    copy = shutil.copytree(loaded["chatglm2"].dir, tmp_path / "copy")
    info = json.loads((copy / INFO_FILE).read_text())
    (copy / INFO_FILE).write_text(json.dumps(info | change))
    with pytest.raises(UserError, match=reason):
        Tokenizer.load(copy)


def test_ids_that_the_folder_states_must_be_those_of_the_vocabulary(tmp_path):
    stand_ins.glm_gpt2(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<|startofpiece|>": 7, "[gMASK]": 9}')
    with pytest.raises(UserError, match=r"<\|startofpiece\|> is 7 in added_tokens.json"):
        families.read(tmp_path, "glm_gpt2")


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"looked for glm_bert: vocab.txt; glm_gpt2: vocab.json \+"):
        families.detect(tmp_path)
    with pytest.raises(UserError, match="glm_chinese needs cog-pretrain.model"):
        families.read(tmp_path, "glm_chinese")
    (tmp_path / "tokenizer.model").write_bytes(b"junk")
    with pytest.raises(UserError, match="not the tiktoken file of GLM-4 .* glm-4-9b-hf"):
        families.read(tmp_path, "glm4")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        families.read(tmp_path, "chatglm2")
    stand_ins.chatglm(tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 150528}')
    with pytest.raises(UserError, match="150528 is the first release of ChatGLM-6B"):
        families.read(tmp_path, "chatglm")
    (tmp_path / "cog-pretrain.model").write_bytes(stand_ins.sentencepiece_model(model_type="char"))
    with pytest.raises(UserError, match="model_type CHAR"):
        save_imported(tmp_path / "out", *families.read(tmp_path, "glm_chinese"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["chatglm3", "glm_bert"])
def test_convert_prepare_and_rows(name, tmp_path, corpus):
    hub, folder = tmp_path / "hub", tmp_path / "tokenizer"
    hub.mkdir()
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    stand_ins.FAMILIES[name](hub, texts[:300])
    finished = run_command("tokenizers/convert.py", f"--from={hub}", f"--out={folder}")
    assert finished.returncode == 0, finished.stderr
    assert f"family {name}" in finished.stdout
    prepare.prepare([str(corpus)], str(folder), str(tmp_path / "data"), Options(), overwrite=False)

    tokenizer = Tokenizer.load(tmp_path / "data" / "tokenizer")
    config = from_dict(
        {
            "model": {"vocab_size": 1024, "max_positions": 96},
            "data": {
                "dir": str(tmp_path / "data"),
                "sources": {"en": {}, "zh": {}},
                "seq_length": 64,
            },
            "objective": {"sentence_weight": 0.5, "document_weight": 0.5},
        }
    )
    dataset = open_dataset(config, tokenizer)
    rows = [dataset.train[index] for index in range(40)]
    special = tokenizer.special
    masks = {special.mask, special.smask, special.gmask}
    assert all(masks & set(row.tokens.tolist()) for row in rows)
    assert all(special.sop in row.tokens for row in rows)
    starts = {int(row.tokens[0]) for row in rows}
    assert (special.cls in starts) == (special.cls is not None)
    assert np.concatenate([row.tokens for row in rows]).max() < tokenizer.vocab_size


def test_contexts_of_a_family_without_cls(loaded):
    tokenizer, special = loaded["chatglm2"], loaded["chatglm2"].special
    cat, dog = tokenizer.encode("the cat").tolist(), tokenizer.encode(" and the dog").tolist()
    context = encode_context("the cat [MASK] and the dog", tokenizer)
    assert context.tokens.tolist() == [*cat, special.mask, *dog, special.eos]
    assert context.blanks == [len(cat)]
    request = continuation(np.array(cat), [np.array(dog)], special.gmask, special)
    assert request.context.tolist() == [*cat, special.gmask]
    assert request.context[request.mask] == special.gmask


def test_convert_errors_are_one_line(tmp_path):
    finished = run_command("tokenizers/convert.py", f"--from={tmp_path}", f"--out={tmp_path / 'x'}")
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: ")
    assert "looked for" in finished.stderr
    assert finished.stderr.count("\n") == 1
