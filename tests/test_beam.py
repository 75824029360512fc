"""The same dataset from an Apache Beam pipeline on its local runner, as a cluster would run it.

Beam's declared upper bounds exclude the pinned protobuf and pyarrow, with which it runs: it is
installed beside them into a folder of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT
from prepared import CHINESE, ENGLISH, hashes, make_tokenizer, run, write_lines

BEAM = ROOT / ".cache" / "beam"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BEAM / ".installed").exists(),
        reason="bash launch/test.sh --all installs Apache Beam into .cache/beam",
    ),
]


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory) -> str:
    return make_tokenizer(tmp_path_factory.mktemp("beam") / "tokenizer")


def run_beam(inputs, tokenizer_dir, out, runner: str, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "glm_jax.prepare", f"--tokenizer={tokenizer_dir}"]
    command += [f"--input={path}" for path in inputs]
    command += [f"--beam_pipeline_options={runner}", f"--out={out}", *flags]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{BEAM}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "runner",
    [
        "runner=DirectRunner",
        "runner=DirectRunner,direct_num_workers=2,direct_running_mode=multi_processing",
    ],
)
def test_beam_gives_the_same_bytes(tokenizer_dir, tmp_path, runner):
    inputs = [
        write_lines(tmp_path / f"{i}.jsonl", (ENGLISH + CHINESE)[i::5] + CHINESE[: 3 * i])
        for i in range(5)
    ]
    run(inputs, tokenizer_dir, tmp_path / "here", num_shards=4, dedup=True)
    flags = ("--num_shards=4", "--dedup")
    finished = run_beam(inputs, tokenizer_dir, tmp_path / "beam", runner, *flags)
    assert finished.returncode == 0, finished.stderr
    assert hashes(tmp_path / "beam") == hashes(tmp_path / "here")
    assert not list(tmp_path.glob("*.partial"))


def test_a_faulty_line_is_one_line(tokenizer_dir, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", ["good", {"text": 3}])
    finished = run_beam([path], tokenizer_dir, tmp_path / "out", "runner=DirectRunner")
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1].startswith(
        f"error: {path}:2: the field 'text' must be a string, got number"
    )
    assert {path.name for path in Path(tmp_path).iterdir()} == {"a.jsonl"}
