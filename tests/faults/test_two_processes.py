"""What happens to a run of two processes on a bad day: the fault table of docs/hosts.md.

One run goes through all of it, and ends as the run of one process with as many devices that nobody
disturbed, bit for bit. That one sums over its devices as several processes do (Gloo): XLA's own
sums within a process go another way round, and differ in the last bit. `pytest -s` shows the table.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from commands import ROOT
from faults.processes import Together, curve, free_port, is_saving, last_step, lines

from glm_jax.training.step_folders import finished_steps

pytestmark = [pytest.mark.slow, pytest.mark.faults]

EVERY, SILENT, HANG = 5, 10, 15  # steps; seconds, that a busy machine does not exceed
FLAGS = [
    "--config.training.eval_every=0",
    f"--config.hosts.silent_seconds={SILENT}",
    "--config.hosts.compare_every=7",
    "--config.checkpoint.keep_latest=100",
    "--hosts_timeout=60",
]
MESH = ["--config.mesh.data=2", "--config.mesh.fsdp=2"]


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
    """Folder of a run of one process with four devices."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    with Together(data_dir, workdir, *FLAGS, *MESH, count=1, devices=4) as one:
        assert one.wait() == [0], one.printed()
    return workdir


class Fault(NamedTuple):
    name: str
    happens: Callable[[Together], None]
    codes: tuple[set[int], set[int]]  # with which the processes may end
    says: str  # what the one that goes on prints, or the other
    in_a_save: bool = False
    planted: str = ""


def kill(index: int) -> Callable[[Together], None]:
    return lambda together: together[index].kill()


def sigterm(together: Together) -> None:
    together[1].send(signal.SIGTERM)


def sigstop(together: Together) -> None:
    together[1].send(signal.SIGSTOP)
    together[0].wait()
    together[1].kill()


def storage_away(together: Together) -> None:
    """While a save is due; SIGTERM ends the session once it is made up for."""
    root, workdir = together.workdir / "checkpoints", together.workdir
    root.rename(workdir / "away")
    together.wait_until(lambda: lines(workdir, "save_failed") != [])
    (workdir / "away").rename(root)
    failed = lines(workdir, "save_failed")[-1]["step"]
    together.wait_until(lambda: max(finished_steps(root)) >= failed)
    sigterm(together)


def nothing(_) -> None:
    """The fault is planted in the program."""


KILLED, ABORTED, RESTART = -signal.SIGKILL, -signal.SIGABRT, 42
SILENCE = r"error: process 1 \(.*\), not heard from for \d+ s .*, gives no sign of life"
FAULTS = [
    Fault("SIGTERM to one", sigterm, ({0}, {0}), "SIGTERM"),
    Fault("storage away for seconds", storage_away, ({0}, {0}), "it is tried again"),
    Fault("kill -9 of 1 in a step", kill(1), ({RESTART}, {KILLED}), SILENCE),
    # JAX aborts whoever loses process 0.
    Fault("kill -9 of 0 in a step", kill(0), ({KILLED}, {ABORTED, RESTART}), ""),
    Fault("kill -9 of 1 in a save", kill(1), ({RESTART}, {KILLED}), SILENCE, True),
    Fault("kill -9 of 0 in a save", kill(0), ({KILLED}, {ABORTED, RESTART}), "", True),
    Fault("SIGSTOP of 1", sigstop, ({RESTART}, {KILLED}), SILENCE),
    Fault(
        "exception on 1",
        nothing,
        ({RESTART}, {RESTART}),
        r"process 1 \(.*\) ended the run: ZeroDivisionError: a planted fault",
        planted="raise:1:4",
    ),
    Fault(
        "1 hangs in its input",
        nothing,
        ({RESTART}, {RESTART}),
        "hangs: .* first to stand still: process 1 .* waiting for input of step",
        planted="hang:1:4",
    ),
]


def test_the_fault_table(data_dir, undisturbed, tmp_path):
    workdir, reached = tmp_path / "run", None
    for fault in FAULTS:
        flags = [*FLAGS, *MESH, f"--config.hosts.hang_seconds={HANG}"]
        with Together(data_dir, workdir, *flags, fault=fault.planted) as together:
            before = last_step(workdir)
            if not fault.planted:
                together.wait_until(lambda start=before: last_step(workdir) > start + 2)
            if fault.in_a_save:
                together.wait_until(lambda: is_saving(workdir))
            began = time.time()
            fault.happens(together)
            codes = together.wait()
            seconds = time.time() - began
            printed = together.printed()
        assert codes[0] in fault.codes[0], printed
        assert codes[1] in fault.codes[1], printed
        assert re.search(fault.says, printed), printed
        if reached is not None:
            assert_little_is_lost(workdir, reached)
        reached = last_step(workdir)
        print(f"| {fault.name} | {codes} | {seconds:.1f} s | at step {reached} |")
    with Together(data_dir, workdir, *FLAGS, *MESH) as together:
        assert together.wait() == [0, 0], together.printed()
    assert_little_is_lost(workdir, reached)
    assert curve(workdir) == curve(undisturbed)
    validations = [lines(path, "validation")[-1] for path in (workdir, undisturbed)]
    assert validations[0]["loss"] == validations[1]["loss"]
    assert lines(workdir, "diverged") == []


def assert_little_is_lost(workdir: Path, reached: int) -> None:
    """Two intervals: one that was being saved, and the steps that were trained meanwhile."""
    resumed = lines(workdir, "resumed")[-1]["step"]
    print(f"|   resumed from step {resumed}, {reached - resumed} steps lost |")
    assert resumed >= reached - 2 * EVERY


@pytest.mark.parametrize(("count", "devices", "data"), [(1, 2, 2), (4, 1, 4)])
def test_a_run_goes_on_with_other_hosts(data_dir, undisturbed, tmp_path, count, devices, data):
    """Of four devices in one process, in the middle: the same rows, and losses to 1e-6."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    for folder in (workdir / "checkpoints").iterdir():
        if int(folder.name) > 20:
            shutil.rmtree(folder)
    mesh = [f"--config.mesh.data={data}", "--max_steps=30", "--config.checkpoint.every=10"]
    with Together(data_dir, workdir, *FLAGS, *mesh, count=count, devices=devices) as together:
        assert together.wait() == [0] * count, together.printed()
    resumed, theirs = curve(workdir), curve(undisturbed)
    assert lines(workdir, "resumed")[-1]["step"] == 20
    assert resumed != theirs  # it did train them again
    for step in range(21, 31):
        assert resumed[step] == pytest.approx(theirs[step], rel=1e-6)
    meta = "checkpoints/30/meta/metadata"
    positions = [json.loads((path / meta).read_text()) for path in (workdir, undisturbed)]
    assert positions[0]["next_row"] == positions[1]["next_row"]
    assert positions[0]["tokens_read"] == positions[1]["tokens_read"]


@pytest.mark.parametrize("what", ["code", "data", "folder"])
def test_hosts_that_differ_do_not_begin(data_dir, tmp_path, what):
    of_last, flags_of_last, message = different(what, data_dir, tmp_path)
    workdir = tmp_path / "run"
    with Together(
        data_dir, workdir, *FLAGS, *MESH, of_last=of_last, flags_of_last=flags_of_last
    ) as together:
        assert together.wait() == [2, 2], together.printed()
        errors = [line for line in together.printed().splitlines() if line.startswith("error:")]
    assert len(errors) == 2
    assert all(re.search(message, error) for error in errors), errors
    assert not (workdir / "checkpoints").exists()


def different(what: str, data_dir: Path, folder: Path) -> tuple[dict, list[str], str]:
    """Variables and flags of process 1 alone, and the message."""
    if what == "folder":
        elsewhere = f"--workdir={folder / 'elsewhere'}"
        return {}, [elsewhere], r"is not the same folder on process 1 \("
    if what == "data":
        shutil.copytree(data_dir, folder / "data")
        metadata = folder / "data" / "en" / "2.0.0" / "metadata.json"
        values = json.loads(metadata.read_text())
        values["splits"]["train"]["shards"][0]["documents"] += 1
        metadata.write_text(json.dumps(values))
        flags = [f"--config.data.dir={folder / 'data'}"]
        return {}, flags, "hosts differ in data of en/train: .* on process 0 .*; .* on process 1"
    shutil.copytree(ROOT / "glm_jax", folder / "code" / "glm_jax")
    with (folder / "code" / "glm_jax" / "batch.py").open("a") as file:
        file.write("# changed\n")
    code = "hosts differ in code of glm_jax: .* on process 0 .*; .* on process 1"
    return {"PYTHONPATH": str(folder / "code"), "PYTHONSAFEPATH": "1"}, [], code


def test_who_is_absent_is_named(data_dir, tmp_path):
    """Of three processes two come."""
    port, flags = free_port(), [*FLAGS, "--hosts_timeout=8"]
    with Together(data_dir, tmp_path / "run", *flags, count=3, port=port, absent=1) as together:
        assert together.wait() == [RESTART, RESTART], together.printed()
        errors = [line for line in together.printed().splitlines() if line.startswith("error:")]
    assert len(errors) == 2
    for error in errors:
        assert re.search(r"process 1 of 3 did not come in 8 s; there are 0 \(.*\), 2 \(", error)
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_taken_is_said(data_dir, tmp_path):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with Together(data_dir, tmp_path / "run", *FLAGS, count=1, port=port) as together:
            assert together.wait() == [2], together.printed()
            assert f"error: port {port} of --coordinator_address" in together.printed()
            assert "Address already in use" in together.printed()


def test_a_folder_that_cannot_be_written_is_said_by_all(data_dir, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with Together(data_dir, tmp_path / "file" / "run", *FLAGS, *MESH, logs=tmp_path) as together:
        assert together.wait() == [2, 2], together.printed()
        assert "Not a directory" in together[0].printed()
        assert "process 0" in together[1].printed()


def supervised(data_dir: Path, workdir: Path, *options: str, **variables: str) -> subprocess.Popen:
    """`launch/supervise.py` with the command of `Training`."""
    command = [sys.executable, "-m", "glm_jax.train", f"--config={ROOT}/tests/faults/recipe.py"]
    command += [f"--config.data.dir={data_dir}", f"--workdir={workdir}", *FLAGS]
    command += ["--config.training.steps=30"]
    return subprocess.Popen(
        [sys.executable, f"{ROOT}/launch/supervise.py", "--pause=0.1", *options, "--", *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def test_a_supervised_run_goes_on_by_itself(data_dir, tmp_path):
    """A process is killed; nobody starts anything."""
    workdir = tmp_path / "run"
    options = ["--num_processes=2", "--devices_per_process=2"]
    process = supervised(data_dir, workdir, *options)
    deadline = time.monotonic() + 180
    while last_step(workdir) < 8:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    victim = json.loads((workdir / "hosts" / "1.json").read_text())["pid"]
    os.kill(victim, signal.SIGKILL)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    assert "supervise: restart 1 in 0.1 s: processes ended with 42, SIGKILL" in printed
    assert lines(workdir, "stopped")[-1]["reason"] == "done"
    assert lines(workdir, "resumed")[0]["step"] > 0
    assert "[1] " in printed


def test_a_crash_loop_stops_and_names_the_rows(data_dir, tmp_path):
    """The same batch kills every session."""
    workdir = tmp_path / "run"
    process = supervised(data_dir, workdir, FAULT="raise:0:3")
    printed, _ = process.communicate(timeout=180)
    assert process.returncode == 2, printed
    assert printed.count("ZeroDivisionError: a planted fault") >= 3
    said = "crash loop: 3 times in a row the run ended at step 3, rows 8 to 11"
    show = f"python -m glm_jax.prepare --show=8:12 --workdir={workdir}"
    assert f"{said}; {show} shows them" in printed
