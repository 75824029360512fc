"""The whole road by its commands: corpus, tokenizer, data, run, resume, fill, evaluate, export."""

import json

import pytest
from commands import run_command


def succeed(*arguments: str, stdin: str = "") -> str:
    finished = run_command(*arguments, stdin=stdin)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.slow
def test_the_road(tmp_path):
    almanac, tokenizer, data, run, out = (
        str(tmp_path / name) for name in ("almanac", "tokenizer", "data", "run", "exported")
    )
    succeed("-m", "glm_jax.almanac", f"--out={almanac}")
    inputs = [f"--input={almanac}/corpus_{language}.jsonl" for language in ("en", "zh")]
    printed = succeed("tokenizers/train.py", *inputs, "--vocab_size=1000", f"--out={tokenizer}")
    assert "tokens/char" in printed
    succeed("-m", "glm_jax.prepare", *inputs, f"--tokenizer={tokenizer}", f"--out={data}")

    train = ("-m", "glm_jax.train", "--config=configs/glm_tiny.py", f"--config.data.dir={data}")
    small = ("--config.model.num_layers=1", "--config.optimizer.warmup_steps=2", f"--workdir={run}")
    printed = succeed(*train, *small, "--config.training.steps=3")
    assert "token_embedding/embedding" in printed
    assert "validation 3/3" in " ".join(printed.split())
    assert "resuming from step 3, row 24" in succeed(*train, *small, "--config.training.steps=5")

    text = "The capital of France is [MASK], and 中国的首都是[MASK]。"
    filled = json.loads(
        succeed("-m", "glm_jax.fill", f"--workdir={run}", "--json", f"--text={text}")
    )
    assert (filled["input"], len(filled["answers"])) == (text, 2)
    lines = succeed(
        "-m", "glm_jax.fill", f"--workdir={run}", stdin="Gold is [MASK].\n水是[MASK]。\n"
    )
    assert [line[:2] for line in lines.splitlines()] == ["Go", "水是"]

    log = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    figures = json.loads(succeed("-m", "glm_jax.evaluate", f"--workdir={run}"))
    last = [line for line in log if line["kind"] == "validation"][-1]
    assert figures["loss"] == pytest.approx(last["loss"], rel=1e-5)
    heldout = f"--input={almanac}/heldout.jsonl"
    task = succeed("-m", "glm_jax.evaluate", f"--workdir={run}", "--task=fill", heldout)
    assert set(json.loads(task)["n"]) == {"all", "en", "zh"}

    stopped = run_command(
        "-m", "glm_jax.fill", f"--workdir={run}", stdin="Gold is [MASK].\nGold.\n"
    )
    assert stopped.returncode == 2
    assert stopped.stdout.startswith("Gold is")  # what stands before the fault is still filled
    assert "no [MASK], [sMASK] or [gMASK] in the text 'Gold.'" in stopped.stderr

    other, foreign = str(tmp_path / "other"), str(tmp_path / "foreign")
    succeed("tokenizers/train.py", *inputs, "--vocab_size=900", f"--out={other}")
    succeed("-m", "glm_jax.prepare", *inputs, f"--tokenizer={other}", f"--out={foreign}")
    refused = run_command("-m", "glm_jax.evaluate", f"--workdir={run}", f"--data_dir={foreign}")
    assert refused.returncode == 2
    assert "was made with tokenizer" in refused.stderr

    succeed("-m", "glm_jax.export", f"--from={run}", f"--out={out}")
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["num_hidden_layers"] == 1
    again = run_command("-m", "glm_jax.export", f"--from={run}", f"--out={out}")
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
