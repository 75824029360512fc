"""Opening released folders of every kind, and what a faulty one is told."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from layouts.tiny_models import MODELS, assert_same, random_params, write_folder

from glm_jax import layouts
from glm_jax.config import ModelConfig
from glm_jax.errors import UserError
from glm_jax.layouts import parameters, read_all
from glm_jax.layouts.folder import open_checkpoint
from glm_jax.layouts.safetensors_files import INDEX, WEIGHTS, SafetensorsFiles
from glm_jax.layouts.table import listed


@pytest.mark.parametrize("layout", MODELS)
def test_layout_and_model_are_found_from_the_folder(layout, tmp_path):
    config, params = MODELS[layout], random_params(MODELS[layout])
    checkpoint = open_checkpoint(write_folder(tmp_path / "hub", layout, params, config))
    assert checkpoint.layout.name == layout
    assert checkpoint.has_checksums
    wanted = dataclasses.asdict(config)
    for field in ("deepnorm_alpha", "init_std", "embedding_dropout", "output_dropout"):
        wanted.pop(field)
    found = dataclasses.asdict(checkpoint.config)
    resolved = {"dtype": "float32", "num_kv_heads": config.num_kv_heads}
    assert {k: v for k, v in (found | resolved).items() if k in wanted} == wanted
    assert checkpoint.config.residual_scale == pytest.approx(config.residual_scale)
    assert_same(read_all(checkpoint.source), params)


def split_for_ranks(tensors: dict, config: ModelConfig, num_ranks: int, gated: bool) -> list[dict]:
    """Megatron's tensor parallelism, written out tensor by tensor."""

    def rows(array, blocks=1):
        """Rank r has its share of the rows of each block."""
        cut = [np.split(block, num_ranks) for block in np.split(array, blocks)]
        return [np.concatenate([block[r] for block in cut]) for r in range(num_ranks)]

    ranks = [{} for _ in range(num_ranks)]
    thirds = config.position == "learned_2d"
    for name, array in tensors.items():
        if "query_key_value" in name:
            parts = rows(array, blocks=3 if thirds else 1)
        elif "dense_h_to_4h" in name:
            parts = rows(array, blocks=2 if gated else 1)
        elif name.endswith("word_embeddings.weight"):
            parts = rows(array)
        elif name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
            parts = np.split(array, num_ranks, axis=1)
        else:
            parts = [array] * num_ranks
        for rank, part in zip(ranks, parts, strict=True):
            rank[name] = np.ascontiguousarray(part)
    return ranks


@pytest.mark.torch
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("layout", ["glm_2021", "glm_130b"])
def test_tensor_parallel_files_are_merged(layout, num_ranks, tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    # The files do not say the head size: it is that of the released models.
    head_dim = {"glm_2021": 64, "glm_130b": 128}[layout]
    config = dataclasses.replace(
        MODELS[layout],
        hidden_dim=4 * head_dim,
        mlp_dim=16 * head_dim if layout == "glm_2021" else 12 * head_dim,
        num_layers=2,
    )
    if layout == "glm_130b":
        config = dataclasses.replace(config, max_positions=2048)
    params = random_params(config)
    tensors = layouts.export_tensors(layout, params, config, "float16")
    folder = tmp_path / "checkpoint" / "49300"
    folder.mkdir(parents=True)
    (folder.parent / "latest").write_text("49300")
    ranks = split_for_ranks(tensors, config, num_ranks, config.activation == "geglu")
    for rank, part in enumerate(ranks):
        module = {name: torch.from_numpy(array) for name, array in part.items()}
        path = folder / f"mp_rank_{rank:02}_model_states.pt"
        torch.save({"module": module, "iteration": 49300}, path)
    checkpoint = open_checkpoint(folder.parent)
    assert (checkpoint.layout.name, checkpoint.num_files) == (layout, num_ranks)
    half = parameters.unflatten(
        {k: v.astype("float16").astype("float32") for k, v in parameters.flatten(params).items()}
    )
    assert_same(read_all(checkpoint.source), half)
    # Any slice, across the ranks.
    name = "layers/mlp/up/kernel"
    index = (slice(1, 2), slice(3, 9), slice(5, config.mlp_dim - 3))
    out = np.zeros([1, 6, config.mlp_dim - 8], np.float32)
    checkpoint.source.read(name, index, out)
    np.testing.assert_array_equal(out, parameters.flatten(half)[name][index])


@pytest.mark.torch
def test_ranks_that_differ_where_they_should_not_are_said(tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    config = dataclasses.replace(MODELS["glm_2021"], hidden_dim=256, mlp_dim=1024, num_layers=1)
    tensors = layouts.export_tensors("glm_2021", random_params(config), config)
    ranks = split_for_ranks(tensors, config, 2, gated=False)
    name = "transformer.final_layernorm.weight"
    ranks[1][name] = ranks[1][name] + 1
    for rank, part in enumerate(ranks):
        module = {key: torch.from_numpy(array) for key, array in part.items()}
        torch.save({"module": module}, tmp_path / f"mp_rank_{rank:02}_model_states.pt")
    said = open_checkpoint(tmp_path).describe()
    assert f"  {name} differs between the ranks; that of rank 0 is used" in said


@pytest.mark.torch
def test_a_bin_file_and_the_prefix(tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    config, params = MODELS["glm_2021"], random_params(MODELS["glm_2021"])
    tensors = layouts.export_tensors("glm_2021", params, config)
    state = {f"glm.{name}": torch.from_numpy(array) for name, array in tensors.items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    hub = layouts.find_layout("glm_2021").write_config(config)
    (tmp_path / "config.json").write_text(json.dumps(hub))
    assert_same(read_all(open_checkpoint(tmp_path).source), params)


def hub_folder(tmp_path, layout="chatglm2") -> Path:
    return write_folder(tmp_path / "hub", layout, random_params(MODELS[layout]), MODELS[layout])


def edit(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(
    ("layout", "fields", "message"),
    [
        ("chatglm2", {"ffn_hidden_size": 100}, r"dense_h_to_4h.weight has shape .* needs \(200"),
        ("chatglm2", {"num_layers": 4}, "missing transformer.encoder.layers.3"),
        ("chatglm2", {"num_layers": 2}, "unexpected transformer.encoder.layers.2"),
        ("chatglm2", {"rmsnorm": False}, "rmsnorm is False, supported is True"),
        ("chatglm2", {"kv_channels": 8}, "kv_channels is 8"),
        ("chatglm2", {"quantization_bit": 4}, "quantised checkpoints are not supported"),
        ("glm", {"quantization_config": {"bits": 4}}, "quantised checkpoints are not supported"),
        ("glm", {"hidden_act": "relu"}, "hidden_act is 'relu', supported is 'silu'"),
        ("glm", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ("glm", {"num_attention_heads": "many"}, "num_attention_heads must be a positive whole"),
        ("glm4", {"head_dim": 8}, "head_dim is 8"),
        ("chatglm", {"position_encoding_2d": False}, "position_encoding_2d is False"),
        ("chatglm", {"vocab_size": 170}, r"word_embeddings.weight has shape \(160, 48\)"),
        ("glm_2021", {"relative_encoding": True}, "relative_encoding is True"),
        ("glm_2021", {"max_sequence_length": 128}, r"position_embeddings.weight has shape \(65,"),
        ("glm_jax", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ],
)
def test_a_config_that_contradicts_the_tensors(layout, fields, message, tmp_path):
    folder = hub_folder(tmp_path, layout)
    edit(folder, **fields)
    with pytest.raises(UserError, match=message) as told:
        open_checkpoint(folder)
    assert str(folder) in str(told.value)
    assert "\n" not in str(told.value)


def test_damage_is_one_line_that_names_the_file(tmp_path):
    folder = hub_folder(tmp_path)
    weights = folder / WEIGHTS
    whole = weights.read_bytes()

    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=WEIGHTS):
        open_checkpoint(folder)
    flipped = bytearray(whole)
    flipped[-50] ^= 1
    weights.write_bytes(flipped)
    with pytest.raises(UserError, match=WEIGHTS):
        open_checkpoint(folder)
    weights.unlink()
    with pytest.raises(UserError, match=str(folder)):
        open_checkpoint(folder)
    with pytest.raises(UserError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")


def test_a_missing_shard_and_an_absent_tensor(tmp_path):
    folder = hub_folder(tmp_path)
    names = list(SafetensorsFiles(folder))
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    (folder / "sha256sums.txt").unlink()
    where = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": where | {"absent": where[names[0]]}}))
    with pytest.raises(UserError, match=r"model-00001-of-00002.safetensors holds tensor 'absent'"):
        open_checkpoint(folder)
    other = where | {names[0]: "model-00002-of-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": other}))
    with pytest.raises(UserError, match=r"names 'model-00002-of-00002.safetensors'"):
        open_checkpoint(folder)


def test_nan_is_found_when_the_tensor_is_read(tmp_path):
    config, params = MODELS["glm"], random_params(MODELS["glm"])
    folder = write_folder(tmp_path / "hub", "glm", params, config)
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(-4, 2)
        file.write(np.float32(np.nan).tobytes())
    (folder / "sha256sums.txt").unlink()
    last = list(SafetensorsFiles(folder))
    with pytest.raises(UserError, match=f"{WEIGHTS}: tensor .* holds NaN or infinite") as told:
        read_all(open_checkpoint(folder).source)
    assert any(name in str(told.value) for name in last)


def test_unknown_tensors_and_layouts(tmp_path):
    folder = hub_folder(tmp_path, "glm4")
    with pytest.raises(UserError, match="layout must be one of glm_jax, .*, got 'gpt2'"):
        open_checkpoint(folder, "gpt2")
    edit(folder, model_type="llama")
    with pytest.raises(UserError, match="no known layout has these tensors"):
        open_checkpoint(folder)
    edit(folder, **layouts.find_layout("chatglm2").write_config(MODELS["chatglm2"]))
    with pytest.raises(UserError, match="checkpoint is not layout chatglm2"):
        open_checkpoint(folder, "chatglm2")


def test_lists_of_names_are_short():
    assert listed([f"t{i:02}" for i in range(12)]).endswith("t09 and 2 more")
