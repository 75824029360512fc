"""The supervisor, over small programs that end as a trainer may."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ROOT

pytestmark = pytest.mark.faults

# Its n-th start ends with the n-th of the codes; a negative code is a signal. The sign of life says
# step 10 n, or always the one that is given.
PROGRAM = """
import json, os, pathlib, signal, sys, time
workdir, codes, step = pathlib.Path(sys.argv[1].split("=")[1]), sys.argv[2], sys.argv[3]
index = os.environ.get("JAX_PROCESS_ID", "0")
(workdir / "hosts").mkdir(parents=True, exist_ok=True)
count = workdir / f"starts.{index}"
number = len(count.read_text()) if count.exists() else 0
with count.open("a") as file:
    file.write(".")
code = json.loads(codes)[index][number]
sign = {"step": int(step) or 10 * (number + 1), "rows": [40, 44], "time": time.time()}
(workdir / "hosts" / f"{index}.json").write_text(json.dumps(sign | {"failure": None}))
print("start", number, "of", index, os.environ.get("JAX_COORDINATOR_ADDRESS", "alone"), flush=True)
if code == "wait":
    signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(0)))
    (workdir / f"waits.{index}").touch()
    time.sleep(60)
os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
"""


def start(workdir: Path, codes: dict, *options: str, step: int = 0) -> subprocess.Popen:
    arguments = [f"--workdir={workdir}", json.dumps(codes), str(step)]
    return subprocess.Popen(
        [
            *(sys.executable, f"{ROOT}/launch/supervise.py", "--pause=0.01", "--grace=5"),
            *(*options, "--", sys.executable, "-c", PROGRAM, *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def supervise(workdir: Path, codes: dict, *options: str, step: int = 0) -> tuple[int, str]:
    process = start(workdir, codes, *options, step=step)
    printed, _ = process.communicate(timeout=60)
    return process.returncode, printed


def starts(workdir: Path, index: int = 0) -> int:
    return len((workdir / f"starts.{index}").read_text())


def decisions(workdir: Path) -> list[str]:
    lines = (workdir / "restarts.jsonl").read_text().splitlines()
    return [json.loads(line)["decision"] for line in lines]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_asks_for_it_and_what_was_killed_is_started_again(tmp_path):
    code, printed = supervise(tmp_path, {"0": [42, -9, -6, 1, 0]})
    assert (code, starts(tmp_path)) == (0, 5)
    assert "restart 2 in 0.01 s: process ended with SIGKILL at step 20" in printed
    assert decisions(tmp_path) == ["restart"] * 4 + ["ended"]
    first = json.loads((tmp_path / "restarts.jsonl").read_text().splitlines()[0])
    assert (first["codes"], first["sight"]["step"]) == ([42], 10)


def test_a_mistake_is_not_started_again(tmp_path):
    code, printed = supervise(tmp_path, {"0": [2]})
    assert (code, starts(tmp_path)) == (2, 1)
    assert "ends with 2: process ended with 2 at step 10" in printed


def test_a_crash_loop_names_the_rows(tmp_path):
    code, printed = supervise(tmp_path, {"0": [42, -11, 42, 0]}, step=7)
    assert (code, starts(tmp_path)) == (2, 3)
    show = f"python -m glm_jax.prepare --show=40:44 --workdir={tmp_path}"
    said = "crash loop: 3 times in a row the run ended at step 7, rows 40 to 43"
    assert f"{said}; {show} shows them" in printed
    assert decisions(tmp_path)[-1] == "crash loop"


def test_what_never_trains_is_a_crash_loop(tmp_path):
    command = ["--", sys.executable, "-c", "raise SystemExit(1)"]
    finished = subprocess.run(
        [sys.executable, f"{ROOT}/launch/supervise.py", "--pause=0.01", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 2
    assert "crash loop: 3 times in a row the command ended before it trained" in finished.stdout


def test_who_waits_for_other_hosts_may_wait_long(tmp_path):
    command = ["--", sys.executable, "-c", "raise SystemExit(42)", f"--workdir={tmp_path}"]
    options = ["--pause=0.01", "--max_restarts=6"]
    finished = subprocess.run(
        [sys.executable, f"{ROOT}/launch/supervise.py", *options, *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 42
    assert "gave up after 6 restarts" in finished.stdout


def test_there_is_a_limit(tmp_path):
    code, printed = supervise(tmp_path, {"0": [42, 42, 42, 42]}, "--max_restarts=2")
    assert (code, starts(tmp_path)) == (42, 3)
    assert "gave up after 2 restarts" in printed


def test_of_several_one_that_ends_takes_the_others_along(tmp_path):
    codes = {"0": ["wait", 0], "1": [-9, 0]}
    code, printed = supervise(tmp_path, codes, "--num_processes=2", "--grace=0.5")
    assert code == 0
    assert (starts(tmp_path, 0), starts(tmp_path, 1)) == (2, 2)
    assert "processes ended with SIGKILL, SIGKILL" in printed
    lines = [line for line in printed.splitlines() if "] start" in line]
    addresses = {line[:3]: line.split()[-1] for line in lines}
    assert set(addresses) == {"[0]", "[1]"}
    assert all(address.startswith("localhost:") for address in addresses.values())


def test_sigterm_reaches_all_who_may_save(tmp_path):
    process = start(tmp_path, {"0": ["wait"], "1": ["wait"]}, "--num_processes=2")
    for index in (0, 1):
        wait_for(tmp_path / f"waits.{index}")
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "[0] saved" in printed
    assert "[1] saved" in printed
    assert (starts(tmp_path, 0), starts(tmp_path, 1)) == (1, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells a child")
def test_nobody_outlives_a_killed_supervisor(tmp_path):
    process = start(tmp_path, {"0": ["wait"]})
    wait_for(tmp_path / "waits.0")
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and is_alive(int(child)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """A process that nobody has waited for yet is dead all the same."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to run: give the command after --"),
        (["--"], "nothing to run"),
        (["--", "no-such-command"], "no-such-command is not a command"),
        (["--num_processes=0", "--", "true"], "--num_processes: must be positive, got 0"),
        (["--max_restart=a", "--", "true"], "--max_restart"),
        (["--what=1", "--", "true"], "--what"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    finished = subprocess.run(
        [sys.executable, f"{ROOT}/launch/supervise.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert finished.stdout == ""


def test_a_dry_run_prints_what_would_be_started():
    options = ["--num_processes=2", "--devices_per_process=3", "--port=77", "--dry-run"]
    finished = subprocess.run(
        [sys.executable, f"{ROOT}/launch/supervise.py", *options, "--", "true", "a b"],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": "--xla_x"},
        check=True,
    )
    flags = "'XLA_FLAGS=--xla_x --xla_force_host_platform_device_count=3' JAX_PLATFORMS=cpu"
    assert finished.stdout.splitlines() == [
        f"JAX_COORDINATOR_ADDRESS=localhost:77 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID={i} {flags} "
        "true 'a b'"
        for i in (0, 1)
    ]
