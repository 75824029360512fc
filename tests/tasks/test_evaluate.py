"""`python -m glm_jax.evaluate`: one JSON line for every task, one line for every mistake."""

import json
import os
import shutil

import pytest
from commands import run_command

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
        (["--task=bpb", "--input=none.txt"], "none.txt: no such file"),
        (["--task=bpb", "--input={file}", "--stride=99"], "--stride 99 must be from 1 to 62"),
        (["--task=cloze", "--input={file}"], "input.jsonl:2: the field 'choices' must be a list"),
        (["--task=lambada", "--input={file}"], "input.jsonl:1: [MASK] in text"),
        (["--task=loss", "--step=77"], "has no checkpoint 77"),
        (
            ["--task=loss", "--fsdp=3"],
            "config.mesh data=-1, fsdp=3, model=1 does not fit 1 devices",
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
