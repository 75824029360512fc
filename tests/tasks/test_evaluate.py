"""`python -m glm_jax.evaluate`: one JSON line for every task, one line for every mistake."""

import contextlib
import json
import math
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags
from commands import run_command
from reporting.fake_run import BEGIN, write_run

from glm_jax import evaluate as command
from glm_jax.config import Config
from glm_jax.errors import UserError
from glm_jax.reporting.overview import overview
from glm_jax.reporting.page import render
from glm_jax.reporting.run import read_run

QUESTION = {"text": "Gold is [MASK].", "choices": ["yellow", "white"], "label": 0, "language": "en"}
CHINESE = {"text": "水是[MASK]。", "choices": ["无色的", "黄色"], "label": 0, "language": "zh"}


def evaluate(workdir, *flags, devices: int = 1) -> dict:
    finished = run_evaluate(workdir, *flags, devices=devices)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1], parse_constant=pytest.fail)


def run_evaluate(workdir, *flags, devices: int = 1):
    arguments = ("-m", "glm_jax.evaluate", f"--workdir={workdir}", *flags)
    if devices == 1:
        return run_command(*arguments)
    code = (
        "import os, runpy, sys;"
        f"os.environ['XLA_FLAGS'] += ' --xla_force_host_platform_device_count={devices}';"
        "import jax; jax.config.update('jax_cpu_enable_async_dispatch', False);"
        "sys.argv = sys.argv[1:]; runpy.run_module('glm_jax.evaluate', run_name='__main__')"
    )
    return run_command("-c", code, *arguments[1:])


@contextlib.contextmanager
def given(*arguments: str):
    """The flags of the command with these values."""
    others = set(flags.FLAGS)
    command.define_flags()
    try:
        flags.FLAGS(["evaluate", *arguments])
        yield
    finally:
        for name in set(flags.FLAGS) - others:
            delattr(flags.FLAGS, name)


@pytest.mark.parametrize(
    ("arguments", "remembered"),
    [
        (["--step=2", "--fsdp=2"], {}),
        (["--ema", "--data_dir=d"], {"ema": True, "data_dir": "d"}),
        (["--task=cloze", "--input=f", "--batch_size=2", "--limit=0"], {}),
        (["--task=cloze", "--input=f", "--length_penalty=0.5"], {"length_penalty": 0.5}),
        (["--task=lambada", "--input=f", "--window=32"], {"window": 32}),
        (["--task=fill", "--input=f", "--max_new_tokens=4"], {"max_new_tokens": 4}),
    ],
)
def test_flags_that_matter_are_remembered(arguments, remembered):
    with given(*arguments):
        command.check_task()
        assert command.remembered_flags() == remembered


def test_tasks_of_the_harness_are_remembered():
    with given("--task=harness", "--harness_tasks=a,b", "--unidirectional"):
        assert command.remembered_flags() == {"harness_tasks": "a,b", "unidirectional": True}


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--task=loss", "--limit=3"], "limit"),
        (["--task=loss", "--input=f"], "input"),
        (["--task=bpb", "--input=f", "--data_dir=d"], "data_dir"),
        (["--task=bpb", "--input=f", "--max_new_tokens=16"], "max_new_tokens"),
        (["--task=lambada", "--input=f", "--stride=4"], "stride"),
        (["--task=lambada", "--input=f", "--unidirectional"], "unidirectional"),
        (["--task=cloze", "--input=f", "--window=9"], "window"),
        (["--task=fill", "--input=f", "--length_penalty=1"], "length_penalty"),
        (["--task=fill", "--input=f", "--harness_tasks=a"], "harness_tasks"),
        (["--task=harness", "--harness_tasks=a", "--input=f"], "input"),
    ],
)
def test_a_flag_that_the_task_does_not_have_is_refused(arguments, flag):
    task = arguments[0].removeprefix("--task=")
    message = f"^--{flag} means nothing to --task={task}$"
    with given(*arguments), pytest.raises(UserError, match=message):
        command.check_task()


def test_the_line_is_json_and_the_report_tells_what_was_evaluated(tmp_path, monkeypatch, capsys):
    health = write_run(tmp_path)
    monkeypatch.setattr(command, "load_config", lambda _: Config())
    monkeypatch.setattr(command, "load_run", lambda *_: SimpleNamespace(step=4000))
    figures = {
        "bits_per_byte": {"all": math.nan, "en": np.float32(1.5)},
        "word_perplexity": {"en": math.inf},
        "unidirectional": False,
    }
    monkeypatch.setitem(command._EVALUATE, "bpb", lambda _: figures)
    arguments = (f"--workdir={tmp_path}", "--task=bpb", "--input=x/en.txt", "--input=zh.txt")
    for more in ((), ("--ema", "--limit=3")):
        with given(*arguments, *more):
            command.main()
    plain, averaged = (
        json.loads(line, parse_constant=pytest.fail)
        for line in capsys.readouterr().out.splitlines()
    )
    assert plain["bits_per_byte"] == {"all": None, "en": 1.5}
    assert plain["word_perplexity"] == {"en": None}
    assert (plain["step"], plain["input"], plain["flags"]) == (4000, "en.txt, zh.txt", {})
    assert averaged["flags"] == {"ema": True, "limit": 3}
    remembered = (tmp_path / "evaluations.jsonl").read_text().splitlines()[-2:]
    assert [json.loads(line) for line in remembered] == [plain, averaged]

    run = read_run(tmp_path, lambda _: health)
    page = render(run, overview(run.history, run.config, BEGIN), BEGIN)
    assert "<h3>bpb, en.txt, zh.txt, step 4,000</h3>" in page
    assert "<h3>bpb, en.txt, zh.txt, ema, limit 3, step 4,000</h3>" in page
    assert "flags" not in page[page.index("<h3>bpb") : page.index("<h3>fill")]


@pytest.mark.slow
def test_loss_is_that_of_the_run_with_its_spread(workdir):
    figures = evaluate(workdir)
    logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (validation,) = [line for line in logged if line["kind"] == "validation"]
    assert (figures["step"], figures["task"]) == (2, "loss")
    assert figures["loss"] == pytest.approx(validation["loss"], rel=1e-5)
    assert figures["loss/zh"] == pytest.approx(validation["loss/zh"], rel=1e-5)
    assert {"all", "en", "zh"} <= set(figures["n"])
    assert figures["stderr"]["all"] > 0
    assert figures["seconds"] > 0


@pytest.mark.slow
def test_bpb_by_language(workdir, jsonl):
    texts = ["Gold is yellow. " * 30, "The capital of France is Paris.", "金是黄色的。" * 30]
    task = ("--task=bpb", f"--input={jsonl(*({'text': text} for text in texts))}")
    figures = evaluate(workdir, *task)
    assert figures["n"] == {"all": 3, "en": 2, "zh": 1}
    assert figures["bytes"] == {"all": 480 + 31 + 540, "en": 480 + 31, "zh": 540}
    # hardly trained: about log2 of its 600 tokens for each of them
    per_token = figures["bits_per_byte"]["all"] * 1051 / figures["tokens"]["all"]
    assert 5 < per_token < 13
    assert set(figures["word_perplexity"]) == {"en", "zh"}
    assert (figures["window_tokens"], figures["stride"]) == (62, 31)
    one_way = evaluate(workdir, *task, "--unidirectional", "--stride=20", "--limit=1")
    assert (one_way["n"]["all"], one_way["unidirectional"], one_way["stride"]) == (1, True, 20)
    assert figures["flags"] == {}
    assert one_way["flags"] == {"limit": 1, "stride": 20, "unidirectional": True}


@pytest.mark.slow
def test_lambada_has_both_directions(workdir, jsonl):
    path = jsonl({"text": "The capital of France is Paris"}, {"text": "Gold is yellow"})
    figures = evaluate(workdir, "--task=lambada", f"--input={path}")
    assert figures["n"] == {"bidirectional": 2, "unidirectional": 2}
    assert set(figures["perplexity"]) == {"bidirectional", "unidirectional"}


@pytest.mark.slow
def test_fill_by_language(workdir, jsonl):
    path = jsonl(*({**q, "answer": q["choices"][0]} for q in (QUESTION, CHINESE)))
    figures = evaluate(workdir, "--task=fill", f"--input={path}", "--max_new_tokens=4")
    assert figures["n"] == {"all": 2, "en": 1, "zh": 1}
    assert set(figures["exact_match"]) == {"all", "en", "zh"}


@pytest.mark.slow
@pytest.mark.multidevice
def test_cloze_on_four_devices_is_that_of_one(workdir, jsonl):
    path = jsonl(*(q | {"label": i} for q in (QUESTION, CHINESE) for i in (0, 1)))
    task = ("--task=cloze", f"--input={path}")
    one = evaluate(workdir, *task, "--length_penalty=0.5")
    flags = ("--length_penalty=0.5", "--fsdp=2", "--model_parallel=2", "--batch_size=3")
    four = evaluate(workdir, *task, *flags, devices=4)
    assert one.pop("seconds") > 0
    assert four.pop("seconds") > 0
    assert one == four
    assert one["accuracy"] == {"all": 0.5, "en": 0.5, "zh": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task=bpb"], "--task=bpb needs --input"),
        (["--task=cloze", "--window=9"], "--window means nothing to --task=cloze"),
        (["--task=bpb", "--input=none.txt"], "none.txt: no such file"),
        (["--task=bpb", "--input={file}", "--stride=99"], "--stride 99 must be from 1 to 62"),
        (["--task=cloze", "--input={file}"], "input.jsonl:2: the field 'choices' must be a list"),
        (["--task=lambada", "--input={file}"], "input.jsonl:1: the special token [MASK] in text"),
        (["--task=loss", "--step=77"], "has no checkpoint 77"),
        (
            ["--task=loss", "--fsdp=3"],
            "config.mesh data=-1, fsdp=3, context=1, model=1 does not fit 1 devices",
        ),
        (["--task=loss", "--ema"], "keeps no moving average"),
        (["--task=harness"], "--harness_tasks is required"),
    ],
)
def test_mistakes_are_one_line(workdir, jsonl, flags, message):
    path = jsonl(QUESTION, {"text": "a [MASK]"})
    finished = run_evaluate(workdir, *(flag.format(file=path) for flag in flags))
    assert finished.returncode == 2, finished.stderr
    (line,) = [line for line in finished.stderr.splitlines() if line.startswith("error:")]
    assert message in line
    assert "Traceback" not in finished.stderr


@pytest.mark.slow
def test_a_run_without_a_good_checkpoint(workdir, tmp_path):
    broken = tmp_path / "run"
    shutil.copytree(workdir, broken)
    for path in (broken / "checkpoints").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    finished = run_evaluate(broken)
    assert finished.returncode == 2, finished.stderr
    assert len([line for line in finished.stderr.splitlines() if line.startswith("error:")]) == 1
