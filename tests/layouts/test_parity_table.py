"""Every layout against the code that others run: what goes in, what comes out, in one table.

import: JAX on the weights of a folder, against numbers of the published code (GLM 2021, ChatGLM,
GLM-130B, ChatGLM2), the classes of transformers (glm, glm4) or our PyTorch class (glm_jax).
export: PyTorch on the exported folder against JAX, over lengths, both kinds of padding, both kinds
of context and both dtypes of weights. round trip: a folder of the layout, read and written again.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import published
import pytest
from layouts.tiny_models import MODELS, random_params, write_folder

from glm_jax import layouts
from glm_jax.batch import Batch
from glm_jax.config import ModelConfig
from glm_jax.export import export_model
from glm_jax.hub import verification
from glm_jax.hub.model_files import Release
from glm_jax.hub.origin import origin_of_checkpoint
from glm_jax.layouts import parameters, read_all
from glm_jax.layouts.folder import Checkpoint, open_checkpoint
from glm_jax.layouts.safetensors_files import SafetensorsFiles
from glm_jax.layouts.sources import LayoutSource
from glm_jax.model import glm
from glm_jax.objective import infill
from glm_jax.ops.cross_entropy import target_cross_entropy
from glm_jax.tokenizer import SpecialTokens

torch = pytest.importorskip("torch", reason="needs PyTorch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

pytestmark = [pytest.mark.torch, pytest.mark.slow]

PUBLISHED = {
    "glm_2021": ("glm_2021", {"activation": "gelu"}, 2e-5),
    "chatglm": ("chatglm_v1", {"deepnorm_alpha": 0.0}, 2e-5),
    "glm_130b": ("glm_130b", {}, 2e-5),
    "chatglm2": ("chatglm2", {}, 5e-5),  # its numbers are float32 themselves
}
NATIVE = ("glm", "glm4")
LENGTHS = (8, 33, 64)
PAD = 3


@pytest.fixture(scope="module")
def table():
    """(layout, column) -> cell; printed when all is done."""
    cells: dict[tuple[str, str], str] = {}
    yield cells
    columns = ("import logits", "import gradients", "export logits", "export cases", "round trip")
    print("\n| layout | " + " | ".join(columns) + " |\n|" + "---|" * 6)
    for layout in MODELS:
        print(f"| {layout} | " + " | ".join(cells.get((layout, c), "") for c in columns) + " |")


def batch_of(config: ModelConfig, length: int, *, side: str, causal: bool) -> Batch:
    """Blank infilling rows with 0 and PAD slots of padding on one side."""
    model = dataclasses.replace(config, context="causal" if causal else "bidirectional")
    rng, special, rows = np.random.default_rng(length), SpecialTokens(), []
    for padding in (0, PAD):
        text = rng.integers(16, config.vocab_size, length - padding - 2, np.int32)
        third = len(text) // 3
        spans = [(third, 2 * third)]
        sample = infill.build(text, spans, mask_id=special.mask, special=special, model=model)
        row = infill.pack([sample], length, objective="token", source=0, special=special)
        rows.append(_shifted(row, padding) if side == "left" else row)
    return Batch(*map(np.stack, zip(*rows, strict=True)))


def _shifted(row: Batch, padding: int) -> Batch:
    seen = np.roll(row.segment > 0, padding) * padding
    row = Batch(*(np.roll(field, padding) for field in row))
    return row._replace(kv_start=row.kv_start + seen, kv_end=row.kv_end + seen)


@functools.cache
def _jitted(config: ModelConfig):
    return jax.jit(functools.partial(glm.apply_logits, config))


def jax_logits(config: ModelConfig, params: dict, batch: Batch) -> np.ndarray:
    config = dataclasses.replace(config, dtype="float32", attention_backend="reference")
    fields = batch.tokens, batch.position, batch.block_position, batch.kv_start, batch.kv_end
    return np.asarray(_jitted(config)(params, *fields))


def jax_gradients(config: ModelConfig, params: dict, batch: Batch) -> dict:
    """Of the mean loss over the targets, by flattened name."""
    config = dataclasses.replace(config, dtype="float32", attention_backend="reference")

    def loss(params):
        fields = batch.tokens, batch.position, batch.block_position, batch.kv_start, batch.kv_end
        hidden = glm.apply_hidden(config, params, *fields)
        kernel = glm.output_kernel(config, params)
        total, _ = target_cross_entropy(hidden, kernel, batch.targets, batch.weights)
        return total / batch.weights.sum()

    return jax.device_get(jax.jit(jax.grad(loss))(params))


def in_torch(checkpoint: Checkpoint, tmp_path: Path):
    """Our class on what `export` makes of a folder; logits as a function of a batch."""
    out, origin = tmp_path / "ours", origin_of_checkpoint(checkpoint)
    if origin.hub_config is not None:
        tokens = {"pad_token_id": 0, "eos_token_id": 2, "cls_token_id": 3, "sop_token_id": 7}
        tokens |= {"eop_token_id": 8, "mask_token_ids": [4, 5, 6], "tokenizer_vocab_size": 160}
        origin = origin._replace(hub_config=dict(origin.hub_config) | tokens)
    found = layouts.find_layout("glm_jax")
    release = Release(found, checkpoint.config, None, origin, *checkpoint.dtypes)
    export_model(release, checkpoint.source, out, license_="mit", base_model="x/y")
    auto = transformers.AutoModelForSeq2SeqLM
    model = auto.from_pretrained(out, trust_remote_code=True).float().eval()
    return model, functools.partial(verification.torch_logits, model)


def in_transformers(folder: Path):
    """The class of transformers on a folder of its own layout."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.set_attn_implementation("eager")
    model = model.float().eval()
    return model, functools.partial(verification.native_logits, model)


def torch_gradients(model, batch: Batch, *, native: bool) -> dict[str, np.ndarray]:
    tokens, targets = torch.from_numpy(batch.tokens).long(), torch.from_numpy(batch.targets).long()
    targets = targets.masked_fill(torch.from_numpy(batch.weights) == 0, -100)
    with torch.enable_grad():
        forward = verification.native_outputs if native else verification.torch_outputs
        logits = forward(model, batch)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
    assert len(tokens) == 2
    return {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layout", PUBLISHED)
def test_published_numbers(layout, fixtures, table):
    name, changes, limit = PUBLISHED[layout]
    tensors, fields = published.read(fixtures / f"{name}.safetensors")
    config = dataclasses.replace(
        MODELS[layout],
        hidden_dim=fields["hidden_size"],
        num_heads=fields["num_attention_heads"],
        mlp_dim=published.mlp_dim(fields),
        norm_eps=1e-5,
        **changes,
    )
    params = layouts.load_params(layout, published.part(tensors, "param."), config)
    batch = _published_batch(tensors)
    error = np.abs(jax_logits(config, params, batch) - tensors["logits"]).max()
    gradients = layouts.export_tensors(layout, jax_gradients(config, params, batch), config)
    theirs = published.part(tensors, "grad.")
    theirs = {k.removeprefix("glm."): v for k, v in theirs.items()}
    worst = worst_relative(gradients, theirs)
    table[layout, "import logits"], table[layout, "import gradients"] = (
        f"{error:.1e}",
        f"{worst:.1e}",
    )
    assert error <= limit
    assert worst <= 1e-4


def _published_batch(tensors: dict) -> Batch:
    tokens, position, block, start, end = published.model_rows(tensors)
    labels, zeros = tensors["labels"], np.zeros_like(tokens)
    weights = (labels >= 0).astype(np.float32)
    targets = np.maximum(labels, 0)
    return Batch(tokens, targets, weights, position, block, start, end, zeros + 1, zeros, zeros)


def worst_relative(ours: dict, theirs: dict) -> float:
    assert ours.keys() == theirs.keys()
    return max(np.linalg.norm(ours[k] - theirs[k]) / np.linalg.norm(theirs[k]) for k in ours)


@pytest.mark.parametrize("layout", ["glm", "glm4", "glm_jax"])
def test_gradients_of_classes_that_are_at_hand(layout, table, tmp_path):
    config, params = MODELS[layout], random_params(MODELS[layout])
    folder = write_folder(tmp_path / "hub", layout, params, config)
    checkpoint = open_checkpoint(folder)
    native = layout in NATIVE
    model, logits = in_transformers(folder) if native else in_torch(checkpoint, tmp_path)
    batch = batch_of(config, 33, side="right", causal=native)
    params = read_all(checkpoint.source)
    used = batch.segment > 0
    error = np.abs(jax_logits(config, params, batch) - logits(batch))[used].max()
    ours = layouts.export_tensors(layout, jax_gradients(config, params, batch), config)
    worst = worst_relative(ours, torch_gradients(model, batch, native=native))
    table[layout, "import logits"], table[layout, "import gradients"] = (
        f"{error:.1e}",
        f"{worst:.1e}",
    )
    assert error <= 5e-5
    assert worst <= 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", MODELS)
def test_exported_logits(layout, dtype, table, tmp_path):
    config = MODELS[layout]
    folder = write_folder(tmp_path / "hub", layout, random_params(config), config, dtype)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.dtypes == [dtype]
    params = read_all(checkpoint.source)
    classes = [in_torch(checkpoint, tmp_path)[1]]
    if layout in NATIVE:
        classes.append(in_transformers(folder)[1])
    errors = []
    for length in LENGTHS:
        for side in ("left", "right"):
            for causal in (False, True):
                batch = batch_of(config, length, side=side, causal=causal)
                ours, used = jax_logits(config, params, batch), batch.segment > 0
                errors += [np.abs(ours - logits(batch))[used].max() for logits in classes]
    so_far = float(table.get((layout, "export logits"), 0.0))
    table[layout, "export logits"] = f"{max(so_far, *errors):.1e}"
    count = int(table.get((layout, "export cases"), 0))
    table[layout, "export cases"] = str(count + len(errors))
    assert max(errors) <= verification.TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layout", MODELS)
def test_round_trip(layout, dtype, table, tmp_path):
    config = MODELS[layout]
    folder = write_folder(tmp_path / "hub", layout, random_params(config), config, dtype)
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint.source, LayoutSource)
    again = tmp_path / "again"
    again.mkdir()
    layouts.write_weights(checkpoint.layout, checkpoint.source, again, np.dtype(dtype), "30KB")
    ours, theirs = SafetensorsFiles(again), SafetensorsFiles(folder)
    assert set(ours) == set(theirs)
    for name in theirs:
        assert ours[name].tobytes() == theirs[name].tobytes(), name
    assert (again / "model.safetensors.index.json").exists()
    assert parameters.shapes(config).keys() == parameters.shapes(checkpoint.config).keys()
    table[layout, "round trip"] = "bit-equal"
