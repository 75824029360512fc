"""Writers: what goes into which file, after a resume too, and what never leaves."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from glm_jax.config import LoggingConfig
from glm_jax.errors import UserError
from glm_jax.training.writers import Display, MetricsLog, make_writers, redacted, steps_of

SECRET = "hunter2" * 4


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    config = {"objective": {"token_weight": 1.0}, "hub_token": SECRET, "data": {"tokenizer": "t"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def lines(workdir) -> list[dict]:
    text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def write_session(workdir, config: LoggingConfig, start: int) -> None:
    writers = make_writers(workdir, config)
    about = {"versions": {"jax": "1.0"}, "num_params": np.int64(7), "access_token": SECRET}
    writers.write(start, "resumed" if start else "started", about)
    for step in (start + 1, start + 2):
        writers.write(step, "train", {"loss": np.float32(step), "loss/zh": math.nan})
    writers.write(start + 2, "validation", {"loss": 0.5})
    writers.write(start + 2, "samples", {"filled": [["北京是", "中国", "的首都 \udc80"]]})
    writers.write(start + 2, "bad_step", {"reason": "not finite", "rows": [np.int32(4), 8]})
    writers.close()


def test_any_value_becomes_json(workdir):
    log = MetricsLog(workdir)
    values = {
        "loss": math.inf,
        "norm": np.float32("nan"),
        "rows": (np.int64(1), [math.nan, 2.5]),
        "mesh": {"data": np.arange(2), 3: None},
        "reason": "巴黎\ud800",
        "good": True,
    }
    log.write(7, "bad_step", values)
    log.close()
    (line,) = lines(workdir)
    assert (line.pop("step"), line.pop("kind"), line.pop("time") > 1e9) == (7, "bad_step", True)
    assert line == {
        "loss": None,
        "norm": None,
        "rows": [1, [None, 2.5]],
        "mesh": {"data": [0, 1], "3": None},
        "reason": "巴黎?",
        "good": True,
    }
    assert "巴黎" in (workdir / "metrics.jsonl").read_text(encoding="utf-8")


def test_a_line_that_was_cut_short_does_not_swallow_the_next(workdir):
    (workdir / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "ki')
    for step in (3, 4):
        log = MetricsLog(workdir)
        log.write(step, "train", {})
        log.close()
    text = (workdir / "metrics.jsonl").read_text().split("\n")
    assert text[1] == '{"step": 2, "ki'
    assert [json.loads(line)["step"] for line in text[2:4]] == [3, 4]


def test_without_options_only_the_log_is_written(workdir):
    write_session(workdir, LoggingConfig(), 0)
    assert {path.name for path in workdir.iterdir()} == {"config.json", "metrics.jsonl"}
    assert [line["kind"] for line in lines(workdir)][:3] == ["started", "train", "train"]


@pytest.mark.parametrize(
    ("package", "config", "message"),
    [
        ("tensorboardX", LoggingConfig(tensorboard=True), r"pip install -e '\.\[tensorboard\]'"),
        ("wandb", LoggingConfig(wandb="offline"), r"pip install -e '\.\[wandb\]'"),
    ],
)
def test_a_missing_package_is_one_line(workdir, monkeypatch, package, config, message):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"^config.logging.*needs {package}: {message}"):
        make_writers(workdir, config)
    assert not (workdir / "metrics.jsonl").exists()


def test_redaction_is_by_name_and_only_of_strings():
    values = {
        "token_weight": 1.0,
        "tokenizer": "path",
        "hub_token": "a",
        "list": [{"API_KEY": "b", "empty_key": ""}],
        "secrets": ["c", 4],
    }
    assert redacted(values) == {
        "token_weight": 1.0,
        "tokenizer": "path",
        "hub_token": "(redacted)",
        "list": [{"API_KEY": "(redacted)", "empty_key": ""}],
        "secrets": ["(redacted)", 4],
    }


def test_tensorboard_has_the_figures_and_forgets_overwritten_steps(workdir):
    pytest.importorskip("tensorboardX")
    write_session(workdir, LoggingConfig(tensorboard=True), 0)
    write_session(workdir, LoggingConfig(tensorboard=True), 1)
    events = [event for path in sorted(workdir.glob("tensorboard/*")) for event in _events(path)]
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert (1, "train/loss", 1.0) in scalars
    assert (3, "train/loss", 3.0) in scalars
    assert (2, "validation/loss", 0.5) in scalars
    assert "train/loss/zh" not in {name for _, name, _ in scalars}
    assert [event.step for event in events if event.session_log.status] == [2]
    texts = b"".join(s for e in events for v in e.summary.value for s in v.tensor.string_val)
    assert "北京是**中国**的首都 ?".encode() in texts
    assert b"not finite" in texts


def _events(path):
    from tensorboardX.proto.event_pb2 import Event

    data = path.read_bytes()  # records of length, its checksum, the event, its checksum
    while data:
        length = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_wandb_offline_continues_one_run_and_gets_no_secrets(workdir, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write_session(workdir, LoggingConfig(wandb="offline"), 0)
    write_session(workdir, LoggingConfig(wandb="offline"), 1)
    run_id = (workdir / "wandb_id").read_text()
    files = sorted(workdir.glob("wandb/offline-run-*/run-*.wandb"))
    assert [path.name for path in files] == [f"run-{run_id}.wandb"] * 2
    written = [path.read_bytes() for path in workdir.rglob("wandb/**/*") if path.is_file()]
    assert any(b"validation/loss" in data for data in written)
    assert any(b"token_weight" in data for data in written)
    assert not any(SECRET.encode() in data for data in written)


def test_wandb_without_a_key_is_one_line(workdir):
    pytest.importorskip("wandb")
    code = (
        "import pathlib, sys\n"
        "from glm_jax.config import LoggingConfig\n"
        "from glm_jax.errors import UserError\n"
        "from glm_jax.training.writers import make_writers\n"
        "try:\n"
        "    make_writers(pathlib.Path(sys.argv[1]), LoggingConfig(wandb='online'))\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    environment = os.environ | {"HOME": str(workdir), "WANDB_SILENT": "true"}
    environment.pop("WANDB_API_KEY", None)
    finished = subprocess.run(
        [sys.executable, "-c", code, str(workdir)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    (line,) = finished.stdout.strip().splitlines()
    assert line.startswith("config.logging.wandb is online: ")


def test_a_terminal_survives_a_window_of_bad_steps_only(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Display(10) as display:
        display.report(3, "train", {"bad_steps": 10})


def test_the_display_shows_figures_and_events_and_nothing_else(capsys):
    with Display(10) as display:
        display.report(
            3, "train", {"loss": 1.25, "loss/zh": 2.0, "accuracy/zh": 0.5, "bad_steps": 0}
        )
        display.report(
            4, "bad_step", {"reason": "[red]not finite", "rows": [4, 8], "loss": math.nan}
        )
        display.report(4, "rewound", {"from_step": 4, "next_row": 12, "seconds": 3.0})
        display.report(5, "samples", {"filled": [["a", "b", "c"]]})
        display.report(5, "saved", {"seconds": 1.0})
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert shown == [
        "train 3/10 loss 1.25 loss/zh 2 bad_steps 0",
        "bad_step 4/10 reason [red]not finite rows [4, 8] loss nan",
        "rewound 4/10 from_step 4 next_row 12",
    ]


def test_a_full_disk_is_one_line(tmp_path):
    log = MetricsLog(tmp_path)
    log._file.close()
    log._file = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    with pytest.raises(UserError, match=r"/dev/full cannot be written: .*No space left"):
        log.write(1, "train", {"loss": 1.0})
    log.close()


def test_the_steps_of_a_kind(tmp_path):
    assert steps_of(tmp_path, "validation") == set()
    log = MetricsLog(tmp_path)
    for step, kind in [(5, "train"), (5, "validation"), (10, "validation")]:
        log.write(step, kind, {})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "kind": "valid')
    assert steps_of(tmp_path, "validation") == {5, 10}
