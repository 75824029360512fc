"""A run's folder is created once and opened again only by a config that continues the run."""

import json
from pathlib import Path

import pytest
from training.samples import changed, tiny_config

from glm_jax import tokenizer
from glm_jax.config import Config, SourceConfig, to_dict
from glm_jax.errors import UserError
from glm_jax.tokenizer import Tokenizer
from glm_jax.training.run_folder import load_config, open_run, save_config

CONFIG = changed(tiny_config(), "data", sources={"en": SourceConfig()})


def make_tokenizer(folder: Path, text: str) -> Tokenizer:
    texts = [f"{text} {word}" for word in ("hello", "world", "fill", "blank")]
    tokenizer.save(folder, tokenizer.train(texts, vocab_size=300), {"en": texts})
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "ours", "one two three")


@pytest.fixture
def workdir(tmp_path, ours) -> Path:
    """A run without checkpoints."""
    assert open_run(tmp_path / "run", CONFIG, ours) == []
    return tmp_path / "run"


@pytest.fixture
def with_checkpoint(workdir) -> Path:
    """A run with something that has the name and the items of a checkpoint."""
    (workdir / "checkpoints" / "5" / "params").mkdir(parents=True)
    return workdir


def refusal(workdir: Path, config: Config, tokenizer: Tokenizer, **arguments) -> str:
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(UserError) as caught:
        open_run(workdir, config, tokenizer, **arguments)
    assert "\n" not in str(caught.value)
    assert (workdir / "config.json").read_bytes() == before
    return str(caught.value)


def test_a_run_has_its_config_and_tokenizer(workdir, ours):
    assert load_config(workdir) == CONFIG
    assert Tokenizer.load(workdir / "tokenizer").fingerprint == ours.fingerprint
    assert open_run(workdir, CONFIG, ours) == []


def test_every_field_that_makes_another_run_is_in_one_line(workdir, ours):
    other = changed(CONFIG, "objective", mask_ratio=0.2)
    other = changed(other, "model", num_layers=3, attention_backend="chunked")
    other = changed(other, "training", steps=30)
    assert refusal(workdir, other, ours) == (
        f"--workdir {workdir} holds another run: config.model.num_layers: 2 -> 3; "
        "config.objective.mask_ratio: 0.15 -> 0.2 (--allow_config_change resumes it with them)"
    )


def test_sources_that_come_or_change_their_share_make_another_run(workdir, ours):
    sources = {"en": SourceConfig(weight=2.0), "zh": SourceConfig(dir="elsewhere")}
    message = refusal(workdir, changed(CONFIG, "data", sources=sources), ours)
    assert "config.data.sources.en.weight: 1.0 -> 2.0" in message
    assert "config.data.sources.zh.weight: None -> 1.0" in message
    moved = changed(CONFIG, "data", sources={"en": SourceConfig(dir="elsewhere")})
    assert open_run(workdir, moved, ours) == ["config.data.sources.en.dir: '' -> 'elsewhere'"]


def test_what_may_change_is_reported_and_kept(with_checkpoint, ours):
    other = changed(CONFIG, "training", steps=30, eval_every=7)
    other = changed(other, "optimizer", learning_rate=0.1, decay=("embedding$", "kernel$"))
    other = changed(other, "model", remat="full")
    lines = [
        "config.model.remat: 'none' -> 'full'",
        "config.optimizer.decay: ('kernel$', 'embedding$') -> ('embedding$', 'kernel$')",
        "config.optimizer.learning_rate: 0.01 -> 0.1",
        "config.training.eval_every: 500 -> 7",
        "config.training.steps: 20 -> 30",
    ]
    assert open_run(with_checkpoint, other, ours) == lines
    assert load_config(with_checkpoint) == CONFIG
    save_config(with_checkpoint, other)
    assert load_config(with_checkpoint) == other
    assert open_run(with_checkpoint, other, ours) == []


def test_another_run_is_resumed_if_that_is_asked_for(with_checkpoint, ours):
    other = changed(changed(CONFIG, "objective", mask_ratio=0.2), "data", seq_length=32)
    changes = open_run(with_checkpoint, other, ours, allow_config_change=True)
    assert changes == [
        "config.data.seq_length: 48 -> 32",
        "config.objective.mask_ratio: 0.15 -> 0.2",
    ]


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize(
    ("section", "fields", "misfits"),
    [
        ("optimizer", {"name": "adafactor", "learning_rate": 0.1}, "optimizer.name"),
        ("optimizer", {"ema_decay": 0.9, "b2": 0.9}, "optimizer.ema_decay"),
        ("optimizer", {"frozen": ("embedding",), "eps": 1e-7}, "optimizer.frozen"),
        ("bad_steps", {"window": 64, "sigma": 5.0}, "bad_steps.window"),
        ("model", {"num_layers": 3, "output_dropout": 0.1}, "model.num_layers"),
        ("model", {"hidden_dim": 48, "mlp_dim": 96}, "model.hidden_dim, config.model.mlp_dim"),
    ],
)
def test_what_does_not_fit_the_saved_state_is_never_resumed(
    with_checkpoint, ours, section, fields, misfits, allow
):
    other = changed(CONFIG, section, **fields)
    message = refusal(with_checkpoint, other, ours, allow_config_change=allow)
    assert f"its checkpoints do not fit another config.{misfits}: use another --workdir" in message


def test_without_checkpoints_nothing_has_to_fit(workdir, ours):
    other = changed(CONFIG, "optimizer", name="adafactor")
    assert open_run(workdir, other, ours) == ["config.optimizer.name: 'adamw' -> 'adafactor'"]


def test_another_tokenizer_is_refused_whatever_is_allowed(workdir, tmp_path):
    other = make_tokenizer(tmp_path / "other", "four five six")
    message = refusal(workdir, CONFIG, other, allow_config_change=True)
    assert (
        f"was trained with tokenizer {Tokenizer.load(workdir / 'tokenizer').fingerprint[:12]}"
        in (message)
    )


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, ours):
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="is not empty and holds no run"):
            open_run(path, CONFIG, ours)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", '{"model": 3}', '{"sede": 1}', '{"seed": "x"}']
)
def test_a_config_that_cannot_be_read_is_one_line(tmp_path, content):
    with pytest.raises(UserError, match=r"holds no run: .*config\.json is missing"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json cannot be used: ") as caught:
        load_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_config_is_plain_json(workdir):
    assert json.loads((workdir / "config.json").read_text()) == json.loads(
        json.dumps(to_dict(CONFIG))
    )
