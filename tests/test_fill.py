"""Filling from the command line: batch files, faults, samples, and mistakes before the model."""

import dataclasses
import gzip
import io
import json

import jax
import pytest
from absl import flags
from commands import ROOT, run_command
from training.samples import changed

from glm_jax import fill, train
from glm_jax.documents import numbered_lines
from glm_jax.errors import UserError
from glm_jax.model.decoding import DecodingOptions, Draw, Filler
from glm_jax.tokenizer import Tokenizer
from glm_jax.training.trained_params import load_params

TEXTS = ["Gold is [MASK].", "水的颜色是[MASK]，[MASK]。", "One two three [gMASK]"]
SAMPLED = {"temperature": 1.0, "top_p": 0.9, "seed": 3, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def run(run_config, tmp_path_factory):
    """The folder of a run of two steps."""
    workdir = tmp_path_factory.mktemp("fill") / "run"
    config = changed(run_config, "optimizer", ema_decay=0.5)
    train.run(changed(config, "training", steps=2), workdir, devices=jax.devices()[:1])
    return workdir


@pytest.fixture(scope="module")
def filler(run):
    config, params, _ = load_params(run)
    return Filler(config.model, params, Tokenizer.load(run / "tokenizer"), batch_size=4)


def main(**values) -> None:
    others = set(flags.FLAGS)
    fill.define_flags()
    try:
        flags.FLAGS(["fill", *(f"--{name}={value}" for name, value in values.items())])
        fill.main()
    finally:
        for name in set(flags.FLAGS) - others:
            delattr(flags.FLAGS, name)


def objects(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def parse(content: bytes, name: str) -> list[fill.Entry]:
    return list(fill.parse_lines(numbered_lines(io.BytesIO(content)), name))


def test_lines_and_their_faults():
    lines = [b"\xef\xbb\xbfa [MASK]\r\n", b"\n", b"  \r\n", "水\n".encode(), b"\xff\n", b"last"]
    entries = parse(b"".join(lines), "x.txt")
    assert [(e.source, e.line) for e in entries] == [(f"x.txt:{n}", n) for n in (1, 4, 5, 6)]
    assert [e.text for e in entries if isinstance(e.text, str)] == ["a [MASK]", "水", "last"]
    assert str(entries[2].text) == "not UTF-8 at byte 0"

    lines = ['{"text": "a", "id": 7}', '{"text": 3}', "[1]", "{", '{"text": ""}']
    entries = parse("\n".join(lines).encode(), "x.jsonl")
    assert [e.text for e in entries if isinstance(e.text, str)] == ["a", ""]
    assert [str(e.text)[:8] for e in entries[1:4]] == ["expected", "expected", "not JSON"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 9])
def test_results_do_not_depend_on_the_chunks(filler, size, capsys):
    options = DecodingOptions(**SAMPLED)
    texts = [TEXTS[0], "nothing", TEXTS[1], UserError("bad"), TEXTS[2], TEXTS[0]]
    entries = [fill.Entry(f"f:{i}", i, text) for i, text in enumerate(texts, 1)]
    chunks = [entries[i : i + size] for i in range(0, len(entries), size)]
    shown = []
    totals = fill.fill(filler, chunks, options, 2, lambda *result: shown.append(result))

    expected = []
    for entry in entries:
        if entry.line not in (2, 4):
            for sample in range(2):
                draw = Draw(entry.line - 1, sample)
                expected.append((entry, sample, *filler.fill([entry.text], options, [draw])))
    assert shown == expected
    assert len({str(result[2].token_ids) for result in shown if result[0].text == TEXTS[0]}) == 4
    assert (totals.texts, totals.faults, totals.filled) == (6, 2, 8)
    assert totals.tokens == sum(len(ids) for result in shown for ids in result[2].token_ids)
    faults = capsys.readouterr().err.splitlines()
    assert faults[0].startswith("error: f:2: no [MASK], [sMASK] or [gMASK] in the text 'nothing'")
    assert faults[1] == "error: f:4: bad"


def test_a_batch_file(run, filler, tmp_path, capsys):
    source, out = tmp_path / "texts.jsonl", tmp_path / "out.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS]
    source.write_text("\n".join([lines[0], "{", lines[1], lines[2]]) + "\n")
    flags_given = {"workdir": run, "input": source, "output": out, "num_samples": 2, **SAMPLED}
    with pytest.raises(UserError, match="^1 of 4 texts could not be filled$"):
        main(**flags_given)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"error: {source}:2: not JSON" in printed.err
    assert "6 filled in" in printed.err
    assert "generated tokens/s" in printed.err

    results = objects(out.read_text())
    assert [(r["line"], r["sample"]) for r in results] == [
        (n, s) for n in (1, 3, 4) for s in (0, 1)
    ]
    draws = [Draw(r["line"] - 1, r["sample"]) for r in results]
    texts = [r["input"] for r in results]
    assert texts == [text for text in TEXTS for _ in range(2)]
    expected = filler.fill(texts, DecodingOptions(**SAMPLED), draws)
    assert [(r["text"], r["answers"]) for r in results] == [(f.text, f.answers) for f in expected]

    before = out.read_bytes()
    with pytest.raises(UserError, match="out.jsonl exists; --overwrite replaces it"):
        main(**flags_given | {"workdir": "/nowhere"})
    assert out.read_bytes() == before
    source.write_text(lines[2])
    main(**flags_given, overwrite=True)
    assert [r["line"] for r in objects(out.read_text())] == [1, 1]


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_a_gzipped_file_is_filled_as_the_plain_one(run, tmp_path, capsys, suffix):
    plain, packed = tmp_path / f"texts.{suffix}", tmp_path / f"texts.{suffix}.gz"
    lines = TEXTS if suffix == "txt" else [json.dumps({"text": text}) for text in TEXTS]
    content = "".join(f"{line}\n" for line in lines).encode()
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    for path in (plain, packed):
        main(workdir=run, input=path, json=True, max_new_tokens=4)
    results = objects(capsys.readouterr().out)
    assert results[:3] == results[3:]
    assert [result["input"] for result in results[:3]] == TEXTS
    packed.write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(UserError, match=f"texts.{suffix}.gz: cannot be read: Compressed"):
        main(workdir=run, input=packed, json=True, max_new_tokens=4)


def test_beams_and_the_moving_average(run, filler, capsys, monkeypatch):
    loaded = []

    def load(*args, **options):
        loaded.append(options["ema"])
        return load_params(*args, **options)

    monkeypatch.setattr(fill, "load_params", load)
    values = {"num_beams": 3, "max_new_tokens": 4}
    for ema in (False, True):
        main(workdir=run, text=TEXTS[0], json=True, ema=ema, **values)
    assert loaded == [False, True]
    result, averaged = objects(capsys.readouterr().out)
    assert result["answers"] == filler.fill([TEXTS[0]], DecodingOptions(**values))[0].answers
    assert averaged["input"] == TEXTS[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_p": 1.5}, "--top_p must be above 0 and at most 1, got 1.5"),
        ({"num_beams": 4, "temperature": 1}, "--num_beams 4 draws nothing: --temperature must be"),
        ({"num_samples": 2}, "--num_samples 2 would all be the same: --temperature is 0"),
        ({"input": "none.txt"}, "--input none.txt: no such file"),
        ({"top_k": 5}, "--top_k is of draws: --temperature is 0"),
        ({"seed": 5}, "--seed is of draws: --temperature is 0"),
        ({"length_penalty": 2}, "--length_penalty is of beams: --num_beams is 1"),
        ({"overwrite": True}, "--overwrite is of --output, which is not given"),
        ({"output": "x.jsonl", "json": True}, "--json is of what is printed: --output is a JSONL"),
        ({"input": "none.csv"}, "--input none.csv: the name must end in one of .jsonl, .jsonl.gz"),
        ({"input": "tests.txt", "text": "[MASK]"}, "give one of --text and --input"),
        ({"output": f"{ROOT}/LICENSE"}, f"--output {ROOT}/LICENSE exists; --overwrite replaces it"),
        ({"output": "/nowhere/x"}, "--output /nowhere/x: the folder /nowhere does not exist"),
    ],
)
def test_mistakes_come_before_the_model(values, message):
    with pytest.raises(UserError) as error:
        main(**{"workdir": "/nowhere", **values})
    assert str(error.value).startswith(message)


def test_the_input_is_never_the_output(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "[MASK]"}\n')
    with pytest.raises(UserError, match="texts.jsonl is the --input"):
        main(workdir="/nowhere", input=path, output=path, overwrite=True)
    assert path.read_text() == '{"text": "[MASK]"}\n'


def test_every_option_has_a_flag_with_its_default():
    others = set(flags.FLAGS)
    fill.define_flags()
    for field in dataclasses.fields(DecodingOptions):
        assert flags.FLAGS[field.name].default == field.default
    for name in set(flags.FLAGS) - others:
        delattr(flags.FLAGS, name)


@pytest.mark.slow
def test_the_command(run, tmp_path):
    source, out = tmp_path / "texts.txt", tmp_path / "out.jsonl"
    source.write_text(f"{TEXTS[0]}\nnothing\n{TEXTS[1]}\n")
    command = ("-m", "glm_jax.fill", f"--workdir={run}", "--max_new_tokens=4")
    finished = run_command(*command, f"--input={source}", f"--output={out}")
    assert finished.returncode == 2, finished.stderr
    assert f"error: {source}:2: no [MASK]" in finished.stderr
    assert "error: 1 of 3 texts could not be filled" in finished.stderr
    assert [r["input"] for r in objects(out.read_text())] == [TEXTS[0], TEXTS[1]]
    finished = run_command(*command, "--num_beams=2", stdin=f"{TEXTS[0]}\n")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("Gold is")
    assert "texts/s" in finished.stderr
