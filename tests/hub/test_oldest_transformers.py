"""An export under the oldest transformers it promises: the numbers of the installed one."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from glm_jax import export, layouts
from glm_jax.config import ModelConfig
from glm_jax.hub.model_files import Release
from glm_jax.layouts import parameters
from glm_jax.layouts.sources import ArraySource

pytest.importorskip("torch", reason="needs PyTorch")
pytest.importorskip("transformers", reason="needs transformers")

from layouts.tiny_models import MODELS, random_params, write_folder

pytestmark = [pytest.mark.torch, pytest.mark.slow]

OLDEST = Path(__file__).resolve().parents[2] / ".cache" / "transformers_oldest"
LEARNED = ModelConfig(
    vocab_size=512, num_layers=2, hidden_dim=32, num_heads=4, mlp_dim=64, max_positions=64
)
CONFIGS = {
    "learned_2d": LEARNED,
    "sandwich": dataclasses.replace(MODELS["glm4"], vocab_size=512),
}
TEXTS = ["The cat [MASK] on the mat and [sMASK]", "北京是[MASK]的首都。", "It was [gMASK]"]

PROGRAM = f"""
import json
import pathlib
import sys

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer


def blanks(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()
    rows = tokenizer({TEXTS!r}, padding=True, return_tensors="pt")
    rows["input_ids"] = torch.nn.functional.pad(rows["input_ids"], (0, 1), value=7)
    rows["attention_mask"] = torch.nn.functional.pad(rows["attention_mask"], (0, 1), value=1)
    inputs = dict(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"])
    answers = [filled.token_ids for filled in model.fill_blanks(tokenizer, {TEXTS!r}, 8)]
    beams = model.generate(**inputs, num_beams=3, do_sample=False, max_new_tokens=4).tolist()
    float32 = model(**inputs).logits.numpy()
    float64 = model.double()(**inputs).logits.numpy()
    return [answers, beams], dict(tokens=inputs["input_ids"], float32=float32, float64=float64)


def native(folder):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 160, (2, 20)))
    greedy = model.generate(tokens, do_sample=False, max_new_tokens=32, pad_token_id=0).tolist()
    return [type(model).__name__, greedy], dict(float32=model(tokens).logits.numpy())


torch.set_num_threads(1)
generated = {{}}
with torch.no_grad():
    for folder in pathlib.Path(sys.argv[1]).iterdir():
        compute = native if folder.name == "native" else blanks
        generated[folder.name], arrays = compute(folder)
        np.savez(folder.name + ".npz", **arrays)
print(json.dumps([transformers.__version__, generated]))
"""


def run(folders: Path, home: Path, *search_path: Path):
    """What the program computed and printed of every folder, with modules of its own."""
    home.mkdir()
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folders)],
        cwd=home,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, search_path)),
            "HF_MODULES_CACHE": str(home / "modules"),
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    version, generated = json.loads(finished.stdout.splitlines()[-1])
    return version, {
        name: (result, np.load(home / f"{name}.npz")) for name, result in generated.items()
    }


@pytest.fixture(scope="module")
def both(tokenizer, tmp_path_factory):
    """Name of a folder -> what the oldest version made of it, and the installed one."""
    if not OLDEST.exists():
        pytest.skip(f"{OLDEST} is absent: launch/test.sh --all makes it")
    home = tmp_path_factory.mktemp("oldest")
    for name, config in CONFIGS.items():
        release = Release(layouts.find_layout("glm_jax"), config, tokenizer, None, "float32")
        source = ArraySource(config, parameters.flatten(random_params(config)))
        export.export_model(release, source, home / "folders" / name)
    config = MODELS["glm"]
    write_folder(home / "folders" / "native", "glm", random_params(config), config)
    version, ours = run(home / "folders", home / "oldest", OLDEST)
    assert version.startswith("4.46.")
    version, theirs = run(home / "folders", home / "installed")
    assert int(version.split(".")[0]) >= 5
    return {name: (ours[name], theirs[name]) for name in (*CONFIGS, "native")}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_oldest_transformers_computes_what_the_installed_one_does(both, name):
    (generated, numbers), (expected, published) = both[name]
    assert generated == expected
    assert sum(map(len, generated[0][0])) > 4
    assert numbers["tokens"].tolist() == published["tokens"].tolist()
    np.testing.assert_allclose(numbers["float32"], published["float32"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(numbers["float64"], published["float64"], rtol=0, atol=1e-6)


def test_the_native_layout_is_read_by_both(both):
    (generated, numbers), (expected, published) = both["native"]
    assert generated == expected
    assert generated[0] == "GlmForCausalLM"
    assert len(generated[1][0]) == 52
    np.testing.assert_allclose(numbers["float32"], published["float32"], rtol=0, atol=1e-5)
