"""PyTorch's own files: the numbers in them, and that nothing in them is run."""

import argparse
import json
import pickle
import random
import sys
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from commands import run_command

from glm_jax.errors import UserError
from glm_jax.layouts.torch_files import INDEX, WEIGHTS, TorchFiles, mp_rank_files

torch = pytest.importorskip("torch", reason="needs PyTorch")

pytestmark = pytest.mark.torch


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "bool"])
def test_tensors_come_out_as_they_were_saved(tmp_path, dtype, zipped):
    torch.manual_seed(0)
    shapes = {"matrix": (3, 5), "vector": (7,), "scalar": (), "nothing": (0, 4)}
    tensors = {k: torch.randn(s).mul(9).to(getattr(torch, dtype)) for k, s in shapes.items()}
    torch.save(tensors, tmp_path / WEIGHTS, _use_new_zipfile_serialization=zipped)
    read = TorchFiles(tmp_path, verify=True)
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read.shape(name) == read[name].shape == shapes[name]
        assert read.dtype(name) == read[name].dtype == np.dtype(dtype)
        assert read[name].astype("float64").tolist() == tensor.double().tolist()
        assert not read[name].flags.writeable
        assert read.file(name) == tmp_path / WEIGHTS


def test_views_parameters_and_shared_tensors_are_contiguous(tmp_path):
    matrix = torch.arange(6, dtype=torch.bfloat16).view(2, 3)
    content = {"a": matrix.T, "b": matrix[1], "c": torch.nn.Parameter(matrix), "d": matrix}
    torch.save(content, tmp_path / "x.pt")
    read = TorchFiles(tmp_path / "x.pt")
    assert read["a"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert read["b"].tolist() == [3, 4, 5]
    assert (
        read["c"].tobytes()
        == read["d"].tobytes()
        == matrix.float().numpy().astype(ml_dtypes.bfloat16).tobytes()
    )
    assert all(read[name].flags.c_contiguous for name in read)


def test_arrays_share_the_memory_of_the_file(tmp_path):
    torch.save({"a": torch.ones(4), "b": torch.ones(4, dtype=torch.bfloat16)}, tmp_path / "x.pt")
    read = TorchFiles(tmp_path / "x.pt")
    assert np.shares_memory(read["a"], read["a"])
    assert np.shares_memory(read["b"], read["b"])


def test_shards_are_one_mapping(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "one.bin")
    torch.save({"b": torch.ones(2)}, tmp_path / "two.bin")
    weight_map = {"a": "one.bin", "b": "two.bin"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    read = TorchFiles(tmp_path)
    assert {name: read[name].tolist() for name in read} == {"a": [0, 0], "b": [1, 1]}
    weight_map["c"] = "two.bin"
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=r"says that two.bin holds tensor 'c', which it does not"):
        TorchFiles(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "../one.bin"}}))
    with pytest.raises(UserError, match=r"names '../one.bin' for tensor 'a'"):
        TorchFiles(tmp_path)


def loss_scaler(monkeypatch) -> object:
    """An object of a class of the original code."""
    package, module = types.ModuleType("fp16"), types.ModuleType("fp16.loss_scaler")
    scaler = type("DynamicLossScaler", (), {"__module__": module.__name__})
    module.DynamicLossScaler = scaler
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    instance = scaler()
    instance.scale = 2.0
    return instance


def test_an_original_checkpoint_is_read_past_its_other_objects(tmp_path, monkeypatch):
    content = {
        "module": {"a": torch.ones(2, dtype=torch.float16)},
        "iteration": 250_000,
        "optimizer": {"loss_scaler": loss_scaler(monkeypatch), "step": np.float64(3)},
        "args": argparse.Namespace(num_layers=24),
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.RandomState(0).get_state(),
        "torch_rng_state": torch.get_rng_state(),
    }
    torch.save(content, tmp_path / "mp_rank_00_model_states.pt")
    read = TorchFiles(tmp_path / "mp_rank_00_model_states.pt")
    assert {name: read[name].tolist() for name in read} == {"a": [1, 1]}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_file_does_not_run(tmp_path, zipped):
    target, file = tmp_path / "ran", tmp_path / WEIGHTS
    content = {"a": torch.ones(2), "b": Malicious(target)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError) as caught:
        TorchFiles(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{file} holds Python objects that will not be unpickled: io.open")
    assert "\n" not in message
    assert not target.exists()
    pickle.loads(pickle.dumps(content["b"])).close()
    assert target.exists()  # it would have run


def test_names_that_are_forgotten_cannot_be_called(tmp_path):
    """A forged numpy dtype: the name is accepted, numpy never sees it."""

    class Forged:
        def __reduce__(self):
            return np.dtype, ("no such dtype",), (3, "|", None, None, None, -1, -1, 255)

    torch.save({"module": {"a": torch.ones(2)}, "state": Forged()}, tmp_path / "x.pt")
    assert list(TorchFiles(tmp_path / "x.pt")) == ["a"]
    torch.save({"a": Forged()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x.pt: 'a' is not a tensor"):
        TorchFiles(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [b"", b"nonsense" * 9, b"PK\x03\x04nonsense"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_file_that_is_none_is_named(tmp_path, content, verify):
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=r"pytorch_model.bin is damaged") as caught:
        TorchFiles(tmp_path, verify=verify)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_file_is_named(tmp_path, verify):
    torch.save({"a": torch.ones(1000)}, tmp_path / WEIGHTS)
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"pytorch_model.bin is damaged"):
        TorchFiles(tmp_path, verify=verify)


def test_a_flipped_bit_is_found_on_request(tmp_path):
    tensor = torch.full((1000,), 1.5)
    torch.save({"a": tensor}, tmp_path / WEIGHTS)
    content = bytearray((tmp_path / WEIGHTS).read_bytes())
    content[content.index(tensor.numpy().tobytes()) + 10] ^= 1
    (tmp_path / WEIGHTS).write_bytes(content)
    assert TorchFiles(tmp_path)["a"].tolist() != tensor.tolist()
    with pytest.raises(UserError, match=r"damaged: record .*/data/0 does not have its checksum"):
        TorchFiles(tmp_path, verify=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds a list, not tensors by name"),
        ({"a": 3}, "'a' is not a tensor"),
        ({1: torch.ones(1)}, "1 is not a tensor with a name"),
        ({"a": torch.ones(1, device="meta")}, "'a' is not a tensor with a name and with data"),
        ({"a": torch.ones(2).to_sparse()}, "'a' is not a tensor"),
    ],
)
def test_other_content_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=f"x.pt.* {message}"):
        TorchFiles(tmp_path / "x.pt")


def test_weights_must_be_floating_and_buffers_need_not(tmp_path):
    content = {"a": torch.ones(2, dtype=torch.int8), "b": torch.ones(2).to(torch.float8_e4m3fn)}
    torch.save(content, tmp_path / "x.pt")
    read = TorchFiles(tmp_path / "x.pt")
    assert read["a"].tolist() == [1, 1]
    with pytest.raises(UserError, match=r"x.pt: tensor 'a' is stored as int8, .*quantised"):
        read.floating("a")
    with pytest.raises(UserError, match=r"x.pt: tensor 'b' is stored as float8_e4m3fn, .*quant"):
        read["b"]


def test_without_torch_the_way_to_install_it_is_shown(tmp_path, monkeypatch):
    (tmp_path / WEIGHTS).write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"need torch: pip install"):
        TorchFiles(tmp_path)


def test_a_path_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"neither a PyTorch file nor a folder with pytorch_model"):
        TorchFiles(tmp_path)


def make_ranks(folder: Path, *ranks: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    files = [folder / f"mp_rank_{rank:02d}_model_states.pt" for rank in ranks]
    for file in files:
        file.touch()
    return files


@pytest.mark.parametrize("tracker", ["latest_checkpointed_iteration.txt", "latest"])
@pytest.mark.parametrize("name", ["250000", "best", "release"])
def test_ranks_are_found_through_the_tracker(tmp_path, tracker, name):
    files = make_ranks(tmp_path / name, *range(12))
    (tmp_path / "250000" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").parent.mkdir(exist_ok=True)
    (tmp_path / tracker).write_text(f"{name}\n")
    assert mp_rank_files(tmp_path) == files
    assert mp_rank_files(tmp_path / name) == files


def test_a_missing_rank_is_named(tmp_path):
    make_ranks(tmp_path, 0, 1, 3)
    with pytest.raises(UserError, match=r"mp_rank_02_model_states.pt is missing: .* rank 3"):
        mp_rank_files(tmp_path)


@pytest.mark.parametrize("name", ["", "..", "../other", "300", "/"])
def test_a_tracker_names_a_folder_beside_it(tmp_path, name):
    folder = tmp_path / "model"
    make_ranks(tmp_path, 0)
    folder.mkdir()
    (folder / "latest").write_text(name)
    with pytest.raises(UserError, match=r"latest names .* which is not a folder beside it"):
        mp_rank_files(folder)


def test_folders_without_ranks_are_named(tmp_path):
    with pytest.raises(UserError, match=r"has neither mp_rank_00_model_states.pt nor latest_check"):
        mp_rank_files(tmp_path)
    (tmp_path / "release").mkdir()
    (tmp_path / "latest").write_text("release")
    with pytest.raises(UserError, match=r"release has no mp_rank_00_model_states.pt"):
        mp_rank_files(tmp_path)


MEMORY = """
import sys
from pathlib import Path

import torch

from glm_jax.layouts.torch_files import TorchFiles

file = Path(sys.argv[1]) / "model.pt"
torch.save({f"t{i}": torch.full((25, 1000, 1000), float(i)) for i in range(3)}, file)
tensors = TorchFiles(file)
status = Path("/proc/self/status")


def resident():
    line = next(l for l in status.read_text().splitlines() if l.startswith("VmRSS"))
    return int(line.split()[1])


before, total = resident(), 0.0
for name in tensors:
    total += float(tensors[name].sum())
    tensors.release(name)
again = float(tensors["t2"][24, 999, 999])
print(total, again, resident() - before)
"""


def test_what_was_read_is_given_back_and_can_be_read_again(tmp_path):
    finished = run_command("-c", MEMORY, str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    total, again, grown = map(float, finished.stdout.split())
    assert (total, again) == (3 * 25e6, 2.0)
    assert grown < 20_000  # KiB, of 300,000


def test_a_legacy_file_is_not_a_mapping_that_could_be_dropped(tmp_path):
    file, values = tmp_path / "old.pt", torch.arange(1 << 20)
    torch.save({"a": values.float()}, file, _use_new_zipfile_serialization=False)
    tensors = TorchFiles(file)
    tensors.release("a")
    np.testing.assert_array_equal(tensors["a"], values.float().numpy())
