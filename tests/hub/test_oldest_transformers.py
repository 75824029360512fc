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
import sys

import numpy as np
import torch
import transformers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder, result = sys.argv[1:]
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()
rows = tokenizer({TEXTS!r}, padding=True, return_tensors="pt")
rows["input_ids"] = torch.nn.functional.pad(rows["input_ids"], (0, 1), value=7)
rows["attention_mask"] = torch.nn.functional.pad(rows["attention_mask"], (0, 1), value=1)
inputs = dict(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"])
answers = [filled.token_ids for filled in model.fill_blanks(tokenizer, {TEXTS!r}, 8)]
beams = model.generate(**inputs, num_beams=3, do_sample=False, max_new_tokens=4).tolist()
with torch.no_grad():
    float32 = model(**inputs).logits.numpy()
    float64 = model.double()(**inputs).logits.numpy()
np.savez(result, tokens=rows["input_ids"].numpy(), float32=float32, float64=float64)
print(json.dumps([transformers.__version__, answers, beams]))
"""


NATIVE_PROGRAM = """
import json
import sys

import numpy as np
import torch
import transformers

folder, result = sys.argv[1:]
torch.set_num_threads(1)
model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 160, (2, 20)))
greedy = model.generate(tokens, do_sample=False, max_new_tokens=32, pad_token_id=0).tolist()
with torch.no_grad():
    np.savez(result, float32=model(tokens).logits.numpy())
print(json.dumps([transformers.__version__, type(model).__name__, greedy]))
"""


def run(folder: Path, home: Path, *search_path: Path, program: str = PROGRAM):
    """What the program computed and printed, with modules of its own."""
    home.mkdir()
    finished = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(home / "result.npz")],
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
    version, *generated = json.loads(finished.stdout.splitlines()[-1])
    return version, generated, np.load(home / "result.npz")


needs_oldest = pytest.mark.skipif(
    not OLDEST.exists(), reason=f"{OLDEST} is absent: launch/test.sh --all makes it"
)


@needs_oldest
@pytest.mark.parametrize("name", CONFIGS)
def test_the_oldest_transformers_computes_what_the_installed_one_does(tokenizer, tmp_path, name):
    config, folder = CONFIGS[name], tmp_path / "export"
    release = Release(layouts.find_layout("glm_jax"), config, tokenizer, None, "float32")
    source = ArraySource(config, parameters.flatten(random_params(config)))
    export.export_model(release, source, folder)
    version, generated, numbers = run(folder, tmp_path / "oldest", OLDEST)
    assert version.startswith("4.46.")
    installed, expected, published = run(folder, tmp_path / "installed")
    assert int(installed.split(".")[0]) >= 5
    assert generated == expected
    assert sum(map(len, generated[0][0])) > 4
    assert numbers["tokens"].tolist() == published["tokens"].tolist()
    np.testing.assert_allclose(numbers["float32"], published["float32"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(numbers["float64"], published["float64"], rtol=0, atol=1e-6)


@needs_oldest
def test_the_native_layout_is_read_by_both(tmp_path):
    config = MODELS["glm"]
    folder = write_folder(tmp_path / "glm", "glm", random_params(config), config)
    version, generated, numbers = run(folder, tmp_path / "old", OLDEST, program=NATIVE_PROGRAM)
    assert version.startswith("4.46.")
    installed, expected, published = run(folder, tmp_path / "new", program=NATIVE_PROGRAM)
    assert int(installed.split(".")[0]) >= 5
    assert generated == expected
    assert generated[0] == "GlmForCausalLM"
    assert len(generated[1][0]) == 52
    np.testing.assert_allclose(numbers["float32"], published["float32"], rtol=0, atol=1e-5)
