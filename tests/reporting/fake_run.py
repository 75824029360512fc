"""A made-up run in which everything happens that can happen to one."""

import dataclasses
import json
import math
import random
from pathlib import Path

from glm_jax import config

STEPS, ROWS, LENGTH = 5000, 256, 512
BEGIN = 1_790_000_000.0
PARAMS, PEAK = 334_940_160, 197.0
VERSIONS = {"glm-jax": "0.1.0", "jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8"}
TEXTS = (
    ("The capital of France is ", "."),
    ("北京是", "的首都，", "是中国最大的城市。"),
    ("Water boils at ", " degrees, and it was cold <b>outside</b>. ", ""),
)
ANSWERS = (
    ((" the",), ("的", "的"), (" the", " the the the")),
    (("London",), ("中国", "北京"), ("100", "He went home.")),
    (("Paris",), ("中国", "上海"), ("100", "She put on her coat & hat.")),
)
GROUPS = {"en": -0.35, "zh": 0.45, "token": -0.25, "sentence": 0.1, "document": 0.3}


@dataclasses.dataclass(frozen=True)
class FakeHealth:
    step: int
    good: bool
    reason: str
    bytes: int
    saved_at: float


def write_run(workdir: Path) -> list[FakeHealth]:
    """Writes config, metrics and evaluations of a run; returns what `health` would find.

    It starts, is killed at step 1,730, resumes from 1,500 on other versions, meets a row of bad
    steps at 2,600 and rewinds to 2,500, is stopped by SIGTERM at 3,960, falls back from a damaged
    checkpoint to 3,500 and finishes. Its file ends in a line that was cut short.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(_config()))
    recorder = _Recorder(random.Random(7))
    _tell(recorder)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in recorder.lines)
    (workdir / "metrics.jsonl").write_text(text + '{"step": 5000, "kind": "tra', encoding="utf-8")
    (workdir / "evaluations.jsonl").write_text("".join(map(_line, _evaluations())))
    return [
        FakeHealth(3500, True, "", 1_790_000_000, BEGIN + 40_000),
        FakeHealth(
            4000, False, "params/d/12 does not match its digest", 1_789_999_000, BEGIN + 45_000
        ),
        FakeHealth(4500, True, "", 1_790_000_000, BEGIN + 50_000),
        FakeHealth(5000, True, "", 1_790_000_000, BEGIN + 55_000),
    ]


def _tell(run: "_Recorder") -> None:
    run.write("started", {"next_row": 0, "start_seconds": 31.0, **_surroundings("0.10.1")})
    run.compile(95)
    run.train_to(1730)
    run.clock += 5400
    run.go_to(1500)
    about = {"start_seconds": 48.0, **_surroundings("0.10.2")}
    run.write("resumed", {"next_row": 1500 * ROWS, **about})
    run.compile(60)
    run.train_to(2600)
    for i in range(10):
        run.step += 1
        run.write("bad_step", _bad_step(run.step, i))
    run.go_to(2500)
    skipped = [2500 * ROWS, 2700 * ROWS]
    seconds = {"lost_seconds": 0.2, "seconds": 11.5}
    rows = {"next_row": 2700 * ROWS, "skipped_rows": skipped}
    run.write("rewound", {"from_step": 2610, **rows, **seconds})
    run.train_to(3960)
    run.write("saved", {"seconds": 2.9})
    run.write("stopped", {"reason": "SIGTERM", "seconds": 4.1, "goodput": 0.91})
    run.clock += 9100
    run.go_to(3500)
    run.write(
        "fallback",
        {
            "bad_step": 3960,
            "reason": "params/d/7 does not match its digest",
            "moved_to": "checkpoints/3960.damaged",
        },
    )
    run.write("resumed", {"next_row": 3700 * ROWS, **about})
    run.compile(60)
    run.train_to(4310)
    run.write("bad_step", _bad_step(4310, 3))
    run.train_to(STEPS)
    run.write("stopped", {"reason": "done", "seconds": 4.3, "goodput": 0.94})


class _Recorder:
    def __init__(self, rng: random.Random):
        self.rng, self.lines, self.step, self.clock = rng, [], 0, BEGIN
        self.compiled = {}

    def write(self, kind: str, values: dict) -> None:
        self.lines.append({"step": self.step, "kind": kind, "time": round(self.clock, 3)} | values)

    def go_to(self, step: int) -> None:
        self.step = step

    def compile(self, seconds: float) -> None:
        """The next line of training says what its first step took."""
        self.clock += seconds
        self.compiled = {"compile_seconds": seconds}

    def train_to(self, step: int) -> None:
        while self.step < step:
            self.step += 10
            self.clock += 96
            self.write("train", self._train_values() | self.compiled)
            self.compiled = {}
            if self.step % 250 == 0:
                self.clock += 40
                self.write("validation", self._losses(0.05, 0.004) | {"seconds": 31.0})
                self.write("samples", {"filled": _filled(self.step), "seconds": 8.5})
            if self.step % 500 == 0:
                self.write("saved", {"seconds": round(2 + self.rng.random(), 2)})

    def _train_values(self) -> dict:
        warm = min(1.0, self.step / 250)
        decay = 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, self.step / STEPS)))
        values = self._losses(0.0, 0.04)
        if self.step == 820:
            values["loss"] = values["loss/zh"] = None
        tokens_per_second = 14_000 + self.rng.gauss(0, 220) - 4_000 * (self.rng.random() < 0.02)
        return values | {
            "grad_norm": math.exp(self.rng.gauss(0.0, 0.25))
            * (0.4 + 9 * math.exp(-self.step / 90)),
            "learning_rate": 4e-4 * warm * decay,
            "tokens": round(10 * ROWS * LENGTH * (1 - values["padding"])),
            "tokens_per_second": tokens_per_second,
            "mfu": 6 * PARAMS * tokens_per_second / 8 / (PEAK * 1e12),
            "seconds": 95.0,
            "input_wait": abs(self.rng.gauss(0.012, 0.006)) + 0.2 * (self.rng.random() < 0.02),
            "gradient_noise_scale": 60
            * (1 + self.step / 60) ** 0.8
            * math.exp(self.rng.gauss(0, 0.3)),
            "bad_steps": 0,
        }

    def _losses(self, offset: float, noise: float) -> dict:
        overall = (
            2.1 + 6.2 * math.exp(-self.step / 260) + 1.5 * math.exp(-self.step / 1800) + offset
        )
        values = {"padding": 0.021 + 0.002 * self.rng.random()}
        for group, difference in {"": 0.0, **{f"/{g}": d for g, d in GROUPS.items()}}.items():
            loss = overall + difference * min(1.0, self.step / 400) + self.rng.gauss(0, noise)
            values[f"loss{group}"] = loss
            values[f"accuracy{group}"] = math.exp(-loss / 3.2)
            values[f"exact_match{group}"] = math.exp(-loss / 1.6)
        return values


def _config() -> dict:
    values = config.default_dict()
    values["model"] |= {"vocab_size": 50_304, "num_layers": 24, "hidden_dim": 1024}
    values["training"] |= {"steps": STEPS, "batch_size": ROWS}
    values["data"] |= {"dir": "/data/news", "tokenizer": "/data/tokenizer", "seq_length": LENGTH}
    values["objective"] |= {"sentence_weight": 0.5, "document_weight": 0.5}
    return values


def _surroundings(jax: str) -> dict:
    return {
        "versions": VERSIONS | {"jax": jax},
        "device": "TPU v5 lite",
        "num_devices": 8,
        "peak_tflops": PEAK,
        "mesh": "data=2 x fsdp=4 x model=1",
        "num_params": PARAMS,
    }


def _bad_step(step: int, i: int) -> dict:
    reason = ("loss spike", "gradient spike", "not finite")[i % 3]
    loss = None if reason == "not finite" else 7.91 + i
    rows = [step * ROWS, (step + 1) * ROWS]
    return {"loss": loss, "grad_norm": 31.5 * (i + 1), "reason": reason, "rows": rows}


def _filled(step: int) -> list[list[str]]:
    filled = []
    for i, text in enumerate(TEXTS):
        answers = ANSWERS[min(len(ANSWERS) - 1, (step + 400 * i) // 1200)][i]
        parts = [text[0]]
        for answer, rest in zip(answers, text[1:], strict=True):
            parts += [answer, rest]
        filled.append(parts)
    return filled


def _evaluations() -> list[dict]:
    groups = {"all": 0.62, "en": 0.71, "zh": 0.53}
    fill = {"exact_match": groups, "n": {"all": 256, "en": 128, "zh": 128}}
    losses = {
        "loss": 2.231,
        "loss/en": 1.88,
        "loss/zh": 2.68,
        "accuracy": 0.498,
        "accuracy/en": 0.55,
    }
    return [
        {"step": 4500, "task": "loss", **losses},
        {"step": 5000, "task": "fill", "input": "questions.jsonl", **fill},
    ]


def _line(values: dict) -> str:
    return json.dumps(values) + "\n"
