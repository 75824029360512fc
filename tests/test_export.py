"""The exported folder: complete, atomic, equal to JAX, and free of this package."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from absl import flags
from layouts.tiny_models import random_params
from safetensors import safe_open

from glm_jax import export, layouts
from glm_jax import tokenizer as tokenizers
from glm_jax.config import Config, DataConfig, ModelConfig
from glm_jax.errors import UserError
from glm_jax.hub import verification
from glm_jax.hub.model_files import Release
from glm_jax.layouts import parameters
from glm_jax.layouts.safetensors_files import SafetensorsFiles
from glm_jax.layouts.sources import ArraySource
from glm_jax.model.decoding import DecodingOptions, Filler
from glm_jax.tokenizer import Tokenizer

TEXTS = {
    "en": ["The cat sat on the mat and Paris is the capital of France. 12345"] * 40,
    "zh": ["北京是中国的首都，上海是中国最大的城市。今天天气很好，我们去公园。"] * 40,
}
LEARNED = ModelConfig(
    vocab_size=512, num_layers=2, hidden_dim=32, num_heads=4, mlp_dim=64, max_positions=64
)
ROTARY = dataclasses.replace(
    LEARNED, position="rope_2d", residual="deepnorm", activation="gelu", tie_embeddings=False
)
FILES = [
    "README.md",
    "blanks_glm_jax.py",
    "config.json",
    "configuration_glm_jax.py",
    "generation_config.json",
    "layers_glm_jax.py",
    "model.safetensors",
    "modeling_glm_jax.py",
    "sha256sums.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    model = tokenizers.train([*TEXTS["en"], *TEXTS["zh"]], vocab_size=380)
    tokenizers.save(folder, model, TEXTS)
    return Tokenizer.load(folder)


def _export(config, params, tokenizer, out, *, dtype="float32", layout="glm_jax", **options):
    release = Release(layouts.find_layout(layout), config, tokenizer, None, dtype)
    source = ArraySource(config, parameters.flatten(params))
    return export.export_model(release, source, out, **options)


def _verify(config, params, tokenizer, out, lengths, dtype="float32"):
    release = Release(layouts.find_layout("glm_jax"), config, tokenizer, None, dtype)
    source = ArraySource(config, parameters.flatten(params))
    return verification.verify(release, source, out, lengths)


def test_the_folder_is_complete(tokenizer, tmp_path):
    out = tmp_path / "deep" / "out"
    _export(LEARNED, random_params(LEARNED), tokenizer, out)
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert [path.name for path in out.parent.iterdir()] == ["out"]

    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "glm_jax_infilling"
    assert (config["vocab_size"], config["tokenizer_vocab_size"]) == (512, 380)
    assert config["hidden_act"] == "gelu_pytorch_tanh"
    generation = json.loads((out / "generation_config.json").read_text())
    special = tokenizer.special
    assert generation["eos_token_id"] == [special.eop, special.eos]
    assert set(range(380, 512)) < set(generation["suppress_tokens"])
    assert not {special.eop, special.eos} & set(generation["suppress_tokens"])
    card = (out / "README.md").read_text()
    phrases = "- en\n- zh", "runs the Python files", "| activation | gelu_tanh", "380 tokens; 512"
    for phrase in phrases:
        assert phrase in card


@pytest.mark.parametrize("size", ["5GB", "30KB"])
def test_the_weights_come_back(tokenizer, tmp_path, size):
    params = random_params(ROTARY)
    _export(ROTARY, params, tokenizer, tmp_path / "out", max_shard_size=size)
    tensors = SafetensorsFiles(tmp_path / "out")
    back = parameters.flatten(layouts.load_params("glm_jax", tensors, ROTARY))
    for name, array in parameters.flatten(params).items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_weights_in_bfloat16(tokenizer, tmp_path):
    params = random_params(LEARNED)
    _export(LEARNED, params, tokenizer, tmp_path / "out", dtype="bfloat16")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        embedding = file.get_tensor("model.embed_tokens.weight")
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    expected = params["token_embedding"]["embedding"].astype(ml_dtypes.bfloat16)
    assert embedding.tobytes() == expected.tobytes()


def test_only_an_earlier_export_is_replaced(tokenizer, tmp_path):
    params = random_params(LEARNED)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    _export(LEARNED, params, tokenizer, foreign)  # empty: nothing is lost
    with pytest.raises(UserError, match="--overwrite replaces it"):
        _export(LEARNED, params, tokenizer, foreign)
    (foreign / "stale.txt").write_text("")
    _export(LEARNED, params, tokenizer, foreign, overwrite=True)
    assert sorted(path.name for path in foreign.iterdir()) == FILES

    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="is not an export"):
        _export(LEARNED, params, tokenizer, other, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "other"]


def test_a_failed_export_leaves_the_earlier_one(tokenizer, tmp_path):
    params = random_params(LEARNED)
    out = tmp_path / "out"
    _export(LEARNED, params, tokenizer, out)
    before = (out / "model.safetensors").read_bytes()
    del params["final_norm"]
    with pytest.raises(UserError, match="final_norm/bias, final_norm/scale"):
        _export(LEARNED, params, tokenizer, out, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / ".out.incomplete").mkdir()  # what a killed export leaves
    _export(LEARNED, random_params(LEARNED), tokenizer, out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_torch_verify_is_one_line(monkeypatch):
    monkeypatch.setattr(verification.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs torch and transformers: pip install"):
        verification.check_torch()


def test_random_rows_are_blank_infilling_with_padding():
    rows = verification.random_rows(LEARNED, 33)
    assert rows.tokens.shape == (4, 33)
    special = tokenizers.SpecialTokens()
    blanks = (rows.tokens == special.mask).sum(1)
    assert blanks.tolist() == [1, 2, 3, 4]
    assert ((rows.tokens == special.sop).sum(1) == blanks).all()
    assert (rows.kv_end == 0).sum(1).tolist() == [0, 1, 2, 3]


@pytest.fixture
def torch():
    pytest.importorskip("transformers", reason="needs transformers")
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    torch.set_num_threads(1)  # the models are too small to share
    return torch


@pytest.mark.torch
@pytest.mark.parametrize(
    ("config", "dtype"),
    [(LEARNED, "float32"), (ROTARY, "float32"), (LEARNED, "bfloat16")],
    ids=["learned_2d", "rope_2d", "bfloat16"],
)
def test_torch_agrees_with_jax(tokenizer, tmp_path, config, dtype, torch):
    params = random_params(config)
    _export(config, params, tokenizer, tmp_path / "out", dtype=dtype)
    checks = _verify(config, params, tokenizer, tmp_path / "out", [8, 33, 64], dtype)
    cases = ["parameters read back", "8 slots", "33 slots", "64 slots", "greedy answers"]
    assert [check.case for check in checks] == cases
    assert all(check.passed for check in checks), checks
    assert max(check.difference for check in checks[1:-1]) < 2e-5
    assert checks[-1].total > 20


@pytest.mark.torch
def test_verify_notices_other_weights(tokenizer, tmp_path, torch):
    params = random_params(LEARNED)
    _export(LEARNED, params, tokenizer, tmp_path / "out")
    params["layers"]["mlp"]["up"]["bias"] = params["layers"]["mlp"]["up"]["bias"] + 0.01
    checks = _verify(LEARNED, params, tokenizer, tmp_path / "out", [33])
    assert not any(check.passed for check in checks[:2])


@pytest.fixture
def run(tokenizer, tmp_path, monkeypatch):
    """A run's folder whose checkpoint is `random_params(LEARNED)` at step 7."""
    shutil.copytree(tokenizer.dir, tmp_path / "run" / "tokenizer")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    config, params = Config(model=LEARNED, data=DataConfig(seq_length=48)), random_params(LEARNED)
    opened = (config, parameters.flatten(params), 7)
    monkeypatch.setattr(export, "open_params", lambda *_, **__: opened)
    return tmp_path / "run"


def run_export(**values) -> None:
    others = set(flags.FLAGS)
    export.define_flags()
    try:
        flags.FLAGS(["export", *(f"--{name}={value}" for name, value in values.items())])
        export.main()
    finally:
        for name in set(flags.FLAGS) - others:
            delattr(flags.FLAGS, name)


@pytest.mark.torch
def test_the_command_prints_a_table_and_its_verdict(run, tmp_path, capsys, monkeypatch, torch):
    out = tmp_path / "out"
    run_export(**{"from": str(run), "out": str(out), "verify": True})
    printed = capsys.readouterr().out
    assert f"step 7 of {run}\n" in printed
    assert f"{run} is in {out} as layout glm_jax, float32" in printed
    assert [word for word in ("8 slots", "33 slots", "48 slots", "greedy") if word in printed]
    assert printed.count("ok") == 5

    monkeypatch.setattr(verification, "TOLERANCE", 1e-12)
    with pytest.raises(SystemExit) as stopped:
        run_export(**{"from": str(run), "out": str(out), "verify": True, "overwrite": True})
    assert stopped.value.code == 1
    assert "differs" in capsys.readouterr().out


def test_the_command_refuses_before_it_reads_weights(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "open_params", None)
    with pytest.raises(UserError, match="--from is required"):
        run_export()
    with pytest.raises(UserError, match="is not an export"):
        run_export(**{"from": str(run), "out": str(run)})


FRESH_PROCESS = """
import sys
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

out, copy = sys.argv[1:]
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=False)
model = AutoModelForSeq2SeqLM.from_pretrained(out, trust_remote_code=True)
assert type(model).__name__ == "GLMJaxForBlankInfilling" and model.dtype == torch.float32
for auto in (AutoModel, AutoModelForCausalLM):
    auto.from_pretrained(out, trust_remote_code=True)

inputs = tokenizer(["The [MASK] sat", "北京[MASK]"], padding=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=4)
assert output.shape[1] <= inputs.input_ids.shape[1] + 5
filled = model.fill_blanks(tokenizer, ["The [MASK] sat on [MASK]."], max_new_tokens=4)[0]
print(filled.token_ids)

model.save_pretrained(copy)
again = AutoModelForSeq2SeqLM.from_pretrained(copy, trust_remote_code=True)
difference = (again(**inputs).logits - model(**inputs).logits).abs().max()
assert difference < 1e-5, difference
loss = again(**inputs, labels=inputs.input_ids).loss
loss.backward()
assert again.lm_head.weight is again.model.embed_tokens.weight
assert not {"glm_jax", "jax"} & {name.split(".")[0] for name in sys.modules}
"""


@pytest.mark.torch
def test_a_fresh_process_needs_torch_and_transformers_only(tokenizer, tmp_path, torch):
    out = tmp_path / "out"
    params = random_params(LEARNED)
    _export(LEARNED, params, tokenizer, out, max_shard_size="30KB")
    ran = subprocess.run(
        [sys.executable, "-I", "-c", FRESH_PROCESS, str(out), str(tmp_path / "copy")],
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    config = dataclasses.replace(LEARNED, dtype="float32")
    filled = Filler(config, params, tokenizer).fill(
        ["The [MASK] sat on [MASK]."], DecodingOptions(4)
    )[0]
    assert json.loads(ran.stdout.splitlines()[-1]) == filled.token_ids
