"""Preparation that is killed with -9 and called again: nothing is done twice, no byte differs."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ROOT
from prepared import CHINESE, ENGLISH, hashes, make_tokenizer, write_lines

pytestmark = [pytest.mark.slow, pytest.mark.faults]

FILES, SHARDS = 48, 12


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("kills")
    tokenizer = make_tokenizer(folder / "tokenizer")
    for number in range(FILES):
        texts = [f"{number} {text}" for text in (ENGLISH + CHINESE) * 20]
        write_lines(folder / f"{number:02}.jsonl", texts)
    return [
        *(sys.executable, "-m", "glm_jax.prepare", f"--input={folder}/*.jsonl"),
        *(f"--tokenizer={tokenizer}", f"--num_shards={SHARDS}", "--num_processes=2"),
    ]


def start(command, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [*command, f"--out={out}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    process = start(command, out)
    assert process.wait() == 0, process.stderr.read()
    return out


def finished(out: Path) -> dict[str, int]:
    """The finished chunks and shards; the number of a folder or file is another if made again."""
    partial = out.with_name("out.partial")
    paths = [*partial.glob("chunks/[0-9]*"), *partial.glob("shards/[!.]*")]
    return {str(path.relative_to(partial)): path.stat().st_ino for path in paths}


def inodes(folder: Path) -> dict[str, int]:
    """The number of every file, which is another if it was written again."""
    return {
        str(path.relative_to(folder)): path.stat().st_ino
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("group", [True, False], ids=["all processes", "the parent alone"])
def test_killed_at_random_moments(command, undisturbed, tmp_path, group):
    """In the chunks, and twice between them and the end."""
    out = tmp_path / "out"
    rng = random.Random(group)
    before: dict[str, int] = {}
    for target in sorted(rng.sample(range(1, FILES + 2 * SHARDS), 3)):
        process = start(command, out)
        while len(finished(out)) < target and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        assert process.poll() is None, process.stderr.read()
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        assert not out.exists()
        time.sleep(0.5)  # orphans notice that their parent is gone
        now = finished(out)
        assert before.items() <= now.items()
        before = now
    process = start(command, out)
    assert process.wait() == 0, process.stderr.read()
    assert hashes(out) == hashes(undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("what", ["finished", "replaced"])
def test_killed_at_the_very_end(command, undisturbed, tmp_path, what):
    """The dataset is whole, but not yet in its place, or what it replaces is out of the way."""
    out = tmp_path / "out"
    process = start(command, out)
    while len(finished(out)) < FILES // 2:
        time.sleep(0.001)
    process.kill()
    process.wait()
    time.sleep(0.5)
    shutil.rmtree(tmp_path / "out.partial" / "dataset")
    shutil.copytree(undisturbed, tmp_path / "out.partial" / "dataset")
    if what == "replaced":
        (tmp_path / ".out.replaced").mkdir()
    whole = inodes(tmp_path / "out.partial" / "dataset")
    chunks = finished(out)
    process = start(command, out)
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # it is being removed
            assert finished(out).items() <= chunks.items(), "nothing is made again"
        time.sleep(0.001)
    assert process.wait() == 0, process.stderr.read()
    assert inodes(out) == whole
    assert hashes(out) == hashes(undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
