"""Continued pretraining: a released folder in, twenty steps on a mesh, a folder out."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from layouts.tiny_models import MODELS, random_params, write_folder
from test_export import run_export
from training.samples import changed

from glm_jax import first_state, train
from glm_jax.config import from_dict
from glm_jax.errors import UserError
from glm_jax.layouts import parameters, read_all
from glm_jax.layouts.folder import open_checkpoint
from glm_jax.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
CARD = "---\nlicense: apache-2.0\nbase_model: example/parent\n---\n# A model\n"


def recipe(folder: Path):
    """What `--config=configs/continued.py:FOLDER` gives."""
    path = ROOT / "configs" / "continued.py"
    spec = importlib.util.spec_from_file_location("continued", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(str(folder)).to_dict()


def continued(folder: Path, data_dir: Path, **training):
    values = recipe(folder)
    values["model"] |= {"dtype": "float32", "param_dtype": "float32"}
    values["data"] |= {"dir": str(data_dir), "seq_length": 64}
    values["optimizer"] |= {"warmup_steps": 2, "cooldown_steps": 2, "learning_rate": 1e-3}
    values["training"] |= {"steps": 20, "batch_size": 4, "log_every": 1, "eval_every": 0}
    values["training"] |= {"eval_rows": 4, **training}
    values["mesh"] |= {"data": 1, "fsdp": 2, "model": 2}
    values["bad_steps"] |= {"sigma": 0.0}
    return from_dict(values)


@pytest.fixture(scope="module")
def model_of(data_dir):
    """A layout's tiny model with as many rows as the tokenizer has pieces."""
    size = Tokenizer.load(data_dir / "tokenizer").vocab_size

    def model(layout: str):
        return dataclasses.replace(MODELS[layout], vocab_size=size, max_positions=96)

    return model


@pytest.fixture
def folder_of(model_of, tmp_path):
    def folder(layout: str, dtype: str = "float32") -> Path:
        config = model_of(layout)
        out = write_folder(tmp_path / layout, layout, random_params(config), config, dtype)
        (out / "README.md").write_text(CARD)
        hub = json.loads((out / "config.json").read_text()) | {"_name_or_path": "example/tiny"}
        (out / "config.json").write_text(json.dumps(hub))
        (out / "LICENSE").write_text("terms")
        return out

    return folder


def losses(workdir: Path) -> list[float]:
    log = (workdir / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, log) if line["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("layout", ["chatglm", "glm4"])
def test_twenty_steps_on_a_mesh_and_out_again(layout, folder_of, data_dir, tmp_path, capsys):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    folder, workdir = folder_of(layout), tmp_path / "run"
    config = continued(folder, data_dir)
    state = train.run(config, workdir, devices=jax.devices()[:4])
    printed = capsys.readouterr().out
    assert f"{folder}: layout {layout}, float32, 1 files, checksums compared" in printed
    curve = losses(workdir)
    assert len(curve) == 20
    assert np.mean(curve[-4:]) < np.mean(curve[:4]) - 0.1
    assert sorted(p.name for p in (workdir / "origin").iterdir()) == [
        "LICENSE",
        "README.md",
        "config.json",
        "origin.json",
    ]

    out = tmp_path / "same"
    run_export(**{"from": str(workdir), "out": str(out), "layout": layout, "verify": True})
    printed = capsys.readouterr().out
    assert "parameters read back" in printed
    card = (out / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "base_model: example/tiny" in card
    assert "Parity with JAX" in card
    assert (out / "LICENSE").read_text() == "terms"
    back = parameters.flatten(read_all(open_checkpoint(out).source))
    for name, array in parameters.flatten(state.params).items():
        np.testing.assert_array_equal(back[name], np.asarray(array), err_msg=name)

    if layout == "glm4":
        model = transformers.AutoModelForCausalLM.from_pretrained(out)
        assert type(model).__name__ == "Glm4ForCausalLM"
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(["[CLS]", "[gMASK]", "<sop>"])])
        assert model.generate(ids, max_new_tokens=3).shape[1] >= 4
    ours = tmp_path / "ours"
    run_export(**{"from": str(workdir), "out": str(ours), "verify": True})
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(ours, trust_remote_code=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(ours, trust_remote_code=False)
    assert model.fill_blanks(tokenizer, ["Gold is [gMASK]"], max_new_tokens=4)[0].text


@pytest.mark.parametrize("layout", ["chatglm2", "glm_2021"])
def test_the_first_parameters_are_those_of_the_folder(layout, folder_of, data_dir, tmp_path):
    folder = folder_of(layout, "bfloat16")
    config = continued(folder, data_dir)
    sharding = train.make_sharding(config.mesh, jax.devices()[:4])
    (tmp_path / "run").mkdir()
    tokenizer = Tokenizer.load(data_dir / "tokenizer")
    init = first_state.released_params(config, sharding, tmp_path / "run", tokenizer)
    state = first_state.first_state(config, sharding, tmp_path / "run", init)
    stored = parameters.flatten(read_all(open_checkpoint(folder).source))
    for name, array in parameters.flatten(state.params).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(array), stored[name], err_msg=name)


@pytest.mark.slow
def test_a_resumed_run_does_not_read_the_folder_again(folder_of, data_dir, tmp_path):
    folder = folder_of("glm")
    config = continued(folder, data_dir, steps=6)
    train.run(config, tmp_path / "run", devices=jax.devices()[:4])
    shutil.rmtree(folder)
    again = from_dict(recipe(tmp_path / "run"))
    assert again == dataclasses.replace(config, data=again.data)
    longer = changed(again, "training", steps=8)
    longer = dataclasses.replace(longer, init_from="elsewhere/")
    state = train.run(longer, tmp_path / "run", devices=jax.devices()[:4])
    assert int(state.step) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 2}, "is another model: model.num_layers is 3 there, 2 here"),
        ({"norm_eps": 1e-3, "rope_base": 5.0}, r"model.norm_eps is .*; model.rope_base is"),
        ({"vocab_size": 1024}, "config.model.vocab_size is 1024, .* config.init.resize_vocab=True"),
    ],
)
def test_another_model_is_refused_with_the_fields(changes, message, folder_of, data_dir, tmp_path):
    config = continued(folder_of("glm4"), data_dir)
    config = changed(config, "model", **changes)
    with pytest.raises(UserError, match=message) as told:
        train.run(config, tmp_path / "run", devices=jax.devices()[:4])
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


def test_nan_weights_stop_before_the_run_has_a_folder(folder_of, data_dir, tmp_path):
    folder = folder_of("glm")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(np.nan).tobytes())
    (folder / "sha256sums.txt").unlink()
    with pytest.raises(UserError, match=r"model.safetensors: tensor .* holds NaN"):
        train.run(continued(folder, data_dir), tmp_path / "run", devices=jax.devices()[:4])
    assert [path.name for path in tmp_path.iterdir()] == ["glm"]


@pytest.mark.slow
def test_more_rows_are_explicit_and_said(folder_of, data_dir, tmp_path, capsys):
    config = continued(folder_of("glm_2021"), data_dir, steps=5)
    config = changed(config, "model", vocab_size=1024, max_positions=128)
    with pytest.raises(UserError, match=r"config.init.resize_vocab=True"):
        train.run(config, tmp_path / "run", devices=jax.devices()[:4])
    config = changed(config, "init", resize_vocab=True)
    with pytest.raises(UserError, match=r"config.init.extend_positions=True"):
        train.run(config, tmp_path / "run", devices=jax.devices()[:4])
    config = changed(config, "init", extend_positions=True)
    capsys.readouterr()
    state = train.run(config, tmp_path / "run", devices=jax.devices()[:4])
    printed = capsys.readouterr().out
    assert "position_embedding/embedding: 32 new rows (97 -> 129)" in printed
    assert "activation gelu_tanh, as it was trained; the published class" in printed
    assert state.params["token_embedding"]["embedding"].shape[0] == 1024


def test_an_export_without_a_licence_says_how_to_give_it(folder_of, tmp_path):
    folder = folder_of("chatglm2")
    (folder / "README.md").write_text("# no metadata\n")
    hub = json.loads((folder / "config.json").read_text())
    del hub["_name_or_path"]
    (folder / "config.json").write_text(json.dumps(hub))
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"does not say the license .* --license=apache-2.0"):
        run_export(**{"from": str(folder), "out": str(out), "layout": "glm"})
    with pytest.raises(UserError, match=r"the base_model .* --base_model="):
        run_export(**{"from": str(folder), "out": str(out), "layout": "glm", "license": "mit"})
    given = {"license": "mit", "base_model": "THUDM/chatglm3-6b"}
    run_export(**{"from": str(folder), "out": str(out), "layout": "glm", **given})
    card = (out / "README.md").read_text()
    assert "license: mit" in card
    assert "Base model: THUDM/chatglm3-6b. Licence: mit." in card


def test_another_depth_cannot_leave_as_chatglm(model_of, tmp_path):
    config = dataclasses.replace(model_of("chatglm"), deepnorm_alpha=0.0)
    folder = write_folder(tmp_path / "ours", "glm_jax", random_params(config), config)
    given = {"license": "mit", "base_model": "x/y", "layout": "chatglm"}
    with pytest.raises(UserError, match=r"sqrt\(56\) = 7.483 .* 3 layers has 2.449"):
        run_export(**{"from": str(folder), "out": str(tmp_path / "out"), **given})
    assert not (tmp_path / "out").exists()
