"""The supervisor, over small programs that end as a trainer may."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from commands import ROOT

pytestmark = pytest.mark.faults

# Its n-th start ends with the n-th of the codes, a negative one by that signal; its sign of life
# says the n-th of the steps. "waits" saves when it is asked to stop, "hangs" does not listen.
PROGRAM = """
import json, os, pathlib, signal, sys, time
workdir, codes, steps = pathlib.Path(sys.argv[1].split("=")[1]), sys.argv[2], sys.argv[3]
index = os.environ.get("JAX_PROCESS_ID", "0")
(workdir / "hosts").mkdir(parents=True, exist_ok=True)
count = workdir / f"starts.{index}"
number = len(count.read_text()) if count.exists() else 0
with count.open("a") as file:
    file.write(".")
code = json.loads(codes)[index][number]
sign = {"step": json.loads(steps)[number], "rows": [40, 44], "time": time.time()}
(workdir / "hosts" / f"{index}.json").write_text(json.dumps(sign | {"failure": None}))
print("start", number, "of", index, os.environ.get("JAX_COORDINATOR_ADDRESS", "alone"), flush=True)
if code in ("waits", "hangs"):
    save = lambda *_: (time.sleep(0.3), print("saved", end="", flush=True), os._exit(0))
    signal.signal(signal.SIGTERM, save if code == "waits" else signal.SIG_IGN)
    (workdir / f"{code}.{index}").touch()
    time.sleep(60)
os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
"""


def start(
    workdir: Path, codes: dict, *options: str, steps: Sequence[int] = range(10, 100, 10)
) -> subprocess.Popen:
    arguments = [f"--workdir={workdir}", json.dumps(codes), json.dumps(list(steps))]
    return subprocess.Popen(
        [
            *(sys.executable, f"{ROOT}/launch/supervise.py", "--pause=0.01", "--grace=5"),
            *(*options, "--", sys.executable, "-c", PROGRAM, *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def supervise(workdir: Path, codes: dict, *options: str, **steps) -> tuple[int, str]:
    process = start(workdir, codes, *options, **steps)
    printed, _ = process.communicate(timeout=60)
    return process.returncode, printed


def supervise_line(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, f"{ROOT}/launch/supervise.py", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | variables,
        check=False,
    )


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
    code, printed = supervise(tmp_path, {"0": [42, -11, 42, 0]}, steps=[7, 7, 6])
    assert (code, starts(tmp_path)) == (2, 3)
    show = f"python -m glm_jax.prepare --show=40:44 --workdir={tmp_path}"
    said = "crash loop: 3 times in a row the run ended at step 6, rows 40 to 43"
    assert f"{said}; {show} shows them" in printed
    assert decisions(tmp_path)[-1] == "crash loop"


def test_steps_that_go_on_are_no_crash_loop(tmp_path):
    """Each is the next of the one before."""
    code, _ = supervise(tmp_path, {"0": [42, 42, 42, 42, 0]}, steps=[5, 6, 7, 8, 9])
    assert (code, starts(tmp_path)) == (0, 5)


def test_what_never_trains_is_a_crash_loop():
    command = ["--", sys.executable, "-c", "raise SystemExit(1)"]
    finished = supervise_line("--pause=0.01", *command)
    assert finished.returncode == 2
    assert "crash loop: 3 times in a row the command ended before it trained" in finished.stdout


def test_who_waits_for_other_hosts_may_wait_long(tmp_path):
    command = ["--", sys.executable, "-c", "raise SystemExit(42)", f"--workdir={tmp_path}"]
    finished = supervise_line("--pause=0.01", "--max_restarts=4", *command)
    assert finished.returncode == 42
    assert "restart 4 in 0.08 s" in finished.stdout
    assert "gave up: 4 restarts in a row brought the run no further" in finished.stdout


def test_only_restarts_that_bring_it_no_further_count_for_the_limit(tmp_path):
    """The run gets to 30 in the first and to 40 in the third attempt, and no further."""
    steps = [30, 20, 40, 10, 30, 50]
    code, printed = supervise(tmp_path, {"0": [42] * 6}, "--max_restarts=2", steps=steps)
    assert (code, starts(tmp_path)) == (42, 5)
    pauses = re.findall(r"restart \d in (\S+) s", printed)
    assert pauses == ["0.01", "0.02", "0.01", "0.02"]
    assert "gave up: 2 restarts in a row brought the run no further" in printed


def test_no_restarts_at_all(tmp_path):
    code, _ = supervise(tmp_path, {"0": [42]}, "--max_restarts=0")
    assert (code, starts(tmp_path)) == (42, 1)


def test_of_several_one_that_ends_takes_the_others_along(tmp_path):
    codes = {"0": ["hangs", 0], "1": [-9, 0]}
    code, printed = supervise(tmp_path, codes, "--num_processes=2", "--grace=0.5")
    assert code == 0
    assert (starts(tmp_path, 0), starts(tmp_path, 1)) == (2, 2)
    assert "processes ended with SIGKILL, SIGKILL" in printed
    lines = [line for line in printed.splitlines() if "] start" in line]
    addresses = {line[:3]: line.split()[-1] for line in lines}
    assert set(addresses) == {"[0]", "[1]"}
    assert all(address.startswith("localhost:") for address in addresses.values())


def test_sigterm_reaches_all_who_may_save(tmp_path):
    process = start(tmp_path, {"0": ["waits"], "1": ["waits"]}, "--num_processes=2")
    for index in (0, 1):
        wait_for(tmp_path / f"waits.{index}")
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert {"[0] saved", "[1] saved"} <= set(printed.splitlines())
    assert (starts(tmp_path, 0), starts(tmp_path, 1)) == (1, 1)
    assert decisions(tmp_path) == ["ended"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody lists children")
def test_sigterm_while_processes_are_being_started_reaches_all(tmp_path):
    """One that is forgotten would be waited for."""
    process = start(tmp_path, {str(index): ["waits"] for index in range(6)}, "--num_processes=6")
    while not children(process):
        time.sleep(0.001)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert time.monotonic() - began < 4  # of a grace of 5
    assert decisions(tmp_path) in ([], ["ended"])


def test_a_stop_while_it_pauses_starts_nothing_more(tmp_path):
    process = start(tmp_path, {"0": [42, 0]}, "--pause=60")
    wait_for(tmp_path / "restarts.jsonl")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert (process.returncode, starts(tmp_path)) == (42, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells a child")
def test_nobody_outlives_a_killed_supervisor(tmp_path):
    process = start(tmp_path, {"0": ["waits"]})
    wait_for(tmp_path / "waits.0")
    (child,) = children(process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and is_alive(int(child)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(process: subprocess.Popen) -> list[str]:
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


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
        (["--num_processes=0", "--", "true"], "--num_processes: must be a whole number from 1"),
        (["--num_processes=two", "--", "true"], "--num_processes: must be a whole number from 1"),
        (["--max_restarts=-1", "--", "true"], "must be a whole number from 0, got '-1'"),
        (["--pause=nan", "--", "true"], "--pause: must be a positive number of seconds, got 'nan'"),
        (["--grace=0", "--", "true"], "--grace: must be a positive number of seconds, got '0'"),
        (["--port=700", "--", "true"], "--port=700 is for several processes: --num_processes is 1"),
        (["--port=70000", "--num_processes=2", "--", "true"], "--port=70000 cannot be used"),
        (["--what=1", "--", "true"], "--what"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    assert_one_line(supervise_line(*arguments), message)


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        finished = supervise_line(f"--port={port}", "--num_processes=2", "--", "echo", "started")
    assert_one_line(finished, f"--port={port} cannot be used: ")


def test_what_the_system_does_not_start_is_one_line(tmp_path):
    program = tmp_path / "program"
    program.write_bytes(b"\x7fnonsense")
    program.chmod(0o755)
    finished = supervise_line("--", str(program))
    assert_one_line(finished, f"{program} cannot be started: Exec format error")


def assert_one_line(finished: subprocess.CompletedProcess, message: str) -> None:
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert finished.stdout == ""


def test_a_dry_run_prints_what_a_shell_would_start():
    options = ["--num_processes=2", "--devices_per_process=3", "--port=77", "--dry-run"]
    command = ["python", "-c", "import os, sys; print(os.environ['XLA_FLAGS'], sys.argv)", "a b"]
    finished = supervise_line(*options, "--", *command, XLA_FLAGS="--xla_x")
    flags = "--xla_x --xla_force_host_platform_device_count=3"
    assert finished.stdout.splitlines() == [
        f"JAX_COORDINATOR_ADDRESS=localhost:77 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID={i} "
        f"XLA_FLAGS='{flags}' JAX_PLATFORMS=cpu {shlex.join(command)}"
        for i in (0, 1)
    ]
    typed = finished.stdout.splitlines()[1].replace("python", sys.executable)
    printed = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, check=True)
    assert printed.stdout == f"{flags} ['-c', 'a b']\n"


def test_one_process_finds_its_place_in_its_surroundings():
    code = "import os; print(os.environ['JAX_PROCESS_ID'], os.environ.get('JAX_NUM_PROCESSES'))"
    finished = supervise_line("--", sys.executable, "-c", code, JAX_PROCESS_ID="5")
    assert (finished.returncode, finished.stdout) == (0, "5 None\n")
