"""Released folders as input of `export`: converted file to file, all or nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from commands import ROOT
from layouts.tiny_models import MODELS, random_params, write_folder
from test_export import run_export

from glm_jax.errors import UserError
from glm_jax.layouts import parameters, read_all
from glm_jax.layouts.checksums import verify_checksums
from glm_jax.layouts.folder import open_checkpoint
from glm_jax.layouts.safetensors_files import SafetensorsFiles

CARD = "---\nlicense: other\nlicense_name: model-terms\nbase_model: example/parent\n---\n"


def released(tmp_path: Path, layout: str, dtype: str = "bfloat16") -> Path:
    """A folder as it would come from the hub."""
    folder = tmp_path / "released" / layout
    write_folder(folder, layout, random_params(MODELS[layout]), MODELS[layout], dtype)
    (folder / "README.md").write_text(CARD)
    (folder / "MODEL_LICENSE").write_text("terms")
    (folder / "modeling_theirs.py").write_text("raise SystemExit('ran')")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "generation_config.json").write_text('{"top_p": 0.8}')
    config = json.loads((folder / "config.json").read_text())
    own = {"auto_map": {"AutoModel": "modeling_theirs.Model"}, "their_field": 1}
    own |= {"_name_or_path": "example/tiny", "eos_token_id": [2, 9]}
    (folder / "config.json").write_text(json.dumps(config | own))
    return folder


def parameters_of(folder: Path) -> dict[str, np.ndarray]:
    return parameters.flatten(read_all(open_checkpoint(folder).source))


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all((left[k] == right[k]).all() for k in left)


@pytest.mark.torch
def test_chatglm2_becomes_a_native_class(tmp_path, capsys):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    folder, out = released(tmp_path, "chatglm2"), tmp_path / "glm"
    run_export(**{"from": str(folder), "out": str(out), "layout": "glm", "verify": True})
    printed = capsys.readouterr().out
    assert "layout chatglm2, bfloat16, 1 files" in printed
    assert f"{folder} is in {out} as layout glm, bfloat16" in printed
    assert "compute the trained function" in printed
    assert same(parameters_of(out), parameters_of(folder))
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert type(model).__name__ == "GlmForCausalLM"
    assert sorted(path.name for path in out.iterdir()) == [
        "MODEL_LICENSE",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "sha256sums.txt",
        "tokenizer.json",
    ]
    card = (out / "README.md").read_text()
    for phrase in ("license: other", "license_name: model-terms", "base_model: example/tiny"):
        assert phrase in card
    assert "carried over: MODEL_LICENSE" in card
    assert verify_checksums(out)


def test_the_same_layout_keeps_what_is_its_own(tmp_path):
    folder, out = released(tmp_path, "chatglm2"), tmp_path / "again"
    run_export(**{"from": str(folder), "out": str(out), "layout": "chatglm2", "dtype": "float16"})
    config = json.loads((out / "config.json").read_text())
    assert config["auto_map"] == {"AutoModel": "modeling_theirs.Model"}
    assert (config["their_field"], config["torch_dtype"]) == (1, "float16")
    assert (out / "modeling_theirs.py").exists()
    assert json.loads((out / "generation_config.json").read_text()) == {"top_p": 0.8}


@pytest.mark.parametrize(
    ("layout", "target", "message"),
    [
        ("glm_2021", "glm", "layout glm needs model.position = 'rope_1d', got 'learned_2d'"),
        ("glm4", "glm", "layout glm needs model.residual = 'pre', got 'sandwich'"),
        ("glm", "chatglm", "layout chatglm needs model.position = 'rope_2d'"),
        ("chatglm", "glm_jax", "layout glm_jax needs the special tokens"),
    ],
)
def test_the_reason_when_a_layout_cannot(layout, target, message, tmp_path):
    folder, out = released(tmp_path, layout), tmp_path / "out"
    with pytest.raises(UserError, match=message):
        run_export(**{"from": str(folder), "out": str(out), "layout": target})
    assert [path.name for path in tmp_path.iterdir()] == ["released"]


def test_other_sizes_are_explicit_and_said(tmp_path, capsys):
    folder, out = released(tmp_path, "glm_2021", "float32"), tmp_path / "out"
    sizes = {"vocab_size": 200, "max_positions": 128}
    run_export(**{"from": str(folder), "out": str(out), "layout": "glm_2021", **sizes})
    printed = capsys.readouterr().out
    assert "token_embedding/embedding: 40 new rows (160 -> 200)" in printed
    assert "position_embedding/embedding: 64 new rows (65 -> 129)" in printed
    assert "trained with gelu_tanh; the published class of this layout computes gelu" in printed
    config = json.loads((out / "config.json").read_text())
    assert (config["vocab_size"], config["max_sequence_length"]) == (200, 128)
    before, after = parameters_of(folder), parameters_of(out)
    name = "position_embedding/embedding"
    np.testing.assert_array_equal(after[name][:65], before[name])


def test_values_beyond_the_dtype_are_refused_and_nothing_is_written(tmp_path):
    params = random_params(MODELS["glm"])
    params["final_norm"]["scale"][3] = 1e6
    folder = write_folder(tmp_path / "large", "glm", params, MODELS["glm"])
    (folder / "README.md").write_text(CARD)
    hub = json.loads((folder / "config.json").read_text()) | {"_name_or_path": "example/tiny"}
    (folder / "config.json").write_text(json.dumps(hub))
    message = r"model.safetensors: tensor model.norm.weight: 1e\+06 is beyond float16"
    with pytest.raises(UserError, match=message):
        run_export(
            **{"from": str(folder), "out": str(tmp_path / "o"), "layout": "glm", "dtype": "float16"}
        )
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_what_would_not_load_is_refused_before_anything_is_written(tmp_path):
    folder, out = released(tmp_path, "chatglm2"), tmp_path / "out"
    arguments = {"from": str(folder), "out": str(out), "layout": "glm"}
    with pytest.raises(UserError, match="eos_token_id 9 is beyond the 8 embedding rows"):
        run_export(**arguments, vocab_size=8)
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(UserError, match="needs code of its own: make one without"):
        run_export(**arguments)
    (folder / "tokenizer.model").unlink()
    tensors = dict(SafetensorsFiles(folder))
    name = "transformer.encoder.final_layernorm.weight"
    tensors[name] = tensors[name].astype(np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "sha256sums.txt").unlink()
    with pytest.raises(UserError, match="holds bfloat16 and float32: say with --dtype"):
        run_export(**arguments)
    run_export(**arguments, dtype="bfloat16")
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [2, 9]


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("---\nlicense: [a\n---\n", "its metadata cannot be read"),
        ("---\nlicense: null\n---\n", "does not say the license"),
        ("---\nlicense: [1, 2]\n---\n", "does not say the license"),
        ("---\n- a\n---\n", "its metadata cannot be read"),
    ],
)
def test_cards_that_say_nothing(card, message, tmp_path):
    folder = released(tmp_path, "glm")
    (folder / "README.md").write_text(card)
    with pytest.raises(UserError, match=message) as told:
        run_export(**{"from": str(folder), "out": str(tmp_path / "out"), "layout": "glm"})
    assert "README.md" in str(told.value)


def test_flags_of_a_run_and_folders_that_are_neither(tmp_path):
    folder, out = released(tmp_path, "glm"), str(tmp_path / "out")
    with pytest.raises(UserError, match="--step is for a run"):
        run_export(**{"from": str(folder), "out": out, "step": 3})
    with pytest.raises(UserError, match="is neither a run nor a released checkpoint"):
        run_export(**{"from": str(tmp_path), "out": out})
    with pytest.raises(UserError, match="is not an export of this program"):
        run_export(**{"from": str(folder), "out": str(folder)})


@pytest.mark.faults
def test_a_killed_export_leaves_nothing_that_loads(tmp_path):
    folder, out = released(tmp_path, "glm4"), tmp_path / "out"
    slow = (
        "import time; from glm_jax.layouts import sources; copy = sources.copy_finite\n"
        "def slowly(*arguments):\n"
        "    print('copying', flush=True); time.sleep(0.2); copy(*arguments)\n"
        "sources.copy_finite = slowly\n"
        "from glm_jax import cli, export; cli.run(export.main, export.define_flags)"
    )
    command = [sys.executable, "-c", slow, f"--from={folder}", f"--out={out}", "--layout=glm4"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    for line in process.stdout:
        if b"copying" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not out.exists()
    left = [path.name for path in tmp_path.iterdir()]
    assert left.count(".out.incomplete") == 1
    assert not (tmp_path / ".out.incomplete" / "config.json").exists()
    run_export(**{"from": str(folder), "out": str(out), "layout": "glm4"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "released"]
    assert same(parameters_of(out), parameters_of(folder))
