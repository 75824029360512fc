"""Writing safetensors files in any order and in parts; the checksums of what was written."""

import json
import os
import shutil
import subprocess

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from glm_jax.errors import UserError
from glm_jax.layouts import tensor_writer
from glm_jax.layouts.checksums import CHECKSUMS, verify_checksums
from glm_jax.layouts.safetensors_files import INDEX, WEIGHTS, SafetensorsFiles
from glm_jax.layouts.tensor_writer import TensorWriter

SHAPES = {"z.weight": (40, 30), "a.weight": (50, 20), "naïve 名": (7,), "one": (), "none": (0, 3)}
DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


def arrays(dtype) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def write(folder, dtype=np.float32, size="5GB") -> list[str]:
    writer = TensorWriter(folder, SHAPES, dtype, size)
    for name, array in arrays(dtype).items():
        writer.tensor(name)[...] = array
    return writer.finish()


@pytest.mark.parametrize(("size", "sharded"), [("5GB", False), ("3KB", True)])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_files_hold_what_was_written_and_nothing_else_is_there(tmp_path, dtype, size, sharded):
    names = write(tmp_path, dtype, size)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in tmp_path.iterdir())
    assert (INDEX in names) == sharded
    assert (WEIGHTS in names) != sharded
    read = SafetensorsFiles(tmp_path)
    assert set(read) == set(SHAPES)
    for name, array in arrays(dtype).items():
        assert read[name].dtype == dtype
        assert read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_files_are_byte_for_byte_what_safetensors_writes(tmp_path, dtype):
    write(tmp_path, dtype)
    expected = tmp_path / "expected.safetensors"
    safetensors.numpy.save_file(arrays(dtype), expected, metadata={"format": "pt"})
    assert (tmp_path / WEIGHTS).read_bytes() == expected.read_bytes()
    loaded = safetensors.numpy.load_file(tmp_path / WEIGHTS)
    assert {k: v.tobytes() for k, v in loaded.items()} == {
        k: v.tobytes() for k, v in arrays(dtype).items()
    }


@pytest.mark.torch
def test_torch_reads_the_same_numbers(tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    from safetensors.torch import load_file

    write(tmp_path, ml_dtypes.bfloat16)
    loaded = load_file(tmp_path / WEIGHTS)
    for name, array in arrays(ml_dtypes.bfloat16).items():
        assert loaded[name].dtype == torch.bfloat16
        np.testing.assert_array_equal(loaded[name].float().numpy(), array.astype(np.float32))


def test_parts_may_be_written_in_any_order(tmp_path):
    writer = TensorWriter(tmp_path, SHAPES, ml_dtypes.bfloat16, "3KB")
    expected = arrays(ml_dtypes.bfloat16)
    for part in (slice(1, None, 2), slice(0, None, 2)):
        for name in reversed([name for name, shape in SHAPES.items() if shape]):
            writer.tensor(name)[part] = expected[name][part]
    writer.tensor("one")[...] = expected["one"]
    writer.finish()
    read = SafetensorsFiles(tmp_path)
    assert {k: read[k].tobytes() for k in read} == {k: v.tobytes() for k, v in expected.items()}


def test_the_index_is_as_transformers_reads_it(tmp_path):
    write(tmp_path, size="3KB")
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in arrays(np.float32).values())
    assert index["weight_map"]["z.weight"] == "model-00001-of-00003.safetensors"
    assert set(index["weight_map"]) == set(SHAPES)


def test_a_tensor_that_was_forgotten_is_an_error(tmp_path):
    writer = TensorWriter(tmp_path, SHAPES, np.float32)
    writer.tensor("one")
    with pytest.raises(ValueError, match="a.weight"):
        writer.finish()


def test_a_size_that_is_no_size_is_one_line(tmp_path):
    with pytest.raises(UserError, match="max_shard_size 'big'"):
        TensorWriter(tmp_path, SHAPES, np.float32, "big")


def test_a_disk_without_space_is_left_alone(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"needs 67,\d{3},\d{3} bytes, the disk has 1,000,000 free"):
        TensorWriter(tmp_path, SHAPES, np.float32)
    assert list(tmp_path.iterdir()) == []


def test_space_is_taken_before_anything_is_written(tmp_path, monkeypatch):
    TensorWriter(tmp_path, {"a": (1 << 20,)}, np.float32)
    assert (tmp_path / WEIGHTS).stat().st_blocks * 512 >= 4 << 20  # not sparse

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_writer.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"model.safetensors: .* reserved: No space left on device"):
        TensorWriter(tmp_path, SHAPES, np.float32)


def test_checksums_are_what_the_common_tool_reads(tmp_path):
    write(tmp_path, size="3KB")
    assert verify_checksums(tmp_path)
    lines = (tmp_path / CHECKSUMS).read_text().splitlines()
    assert len(lines) == 4  # three shards and the index
    if tool := shutil.which("sha256sum"):
        finished = subprocess.run([tool, "--strict", "-c", CHECKSUMS], cwd=tmp_path, check=False)
        assert finished.returncode == 0


def test_a_folder_without_checksums_is_not_an_error(tmp_path):
    assert not verify_checksums(tmp_path)


def test_a_flipped_bit_is_found(tmp_path):
    write(tmp_path, size="3KB")
    file = tmp_path / "model-00002-of-00003.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert len(SafetensorsFiles(tmp_path)) == len(SHAPES)  # it still opens
    with pytest.raises(
        UserError, match=r"model-00002-of-00003.safetensors is not what was written"
    ):
        verify_checksums(tmp_path)


def test_a_missing_file_is_found(tmp_path):
    write(tmp_path, size="3KB")
    os.remove(tmp_path / INDEX)
    with pytest.raises(UserError, match=r"index.json is missing: sha256sums.txt lists it"):
        verify_checksums(tmp_path)


@pytest.mark.parametrize("content", ["", "abc  model.safetensors\n", f"{'0' * 64}  ../file\n"])
def test_a_damaged_list_is_named(tmp_path, content):
    (tmp_path / CHECKSUMS).write_text(content)
    with pytest.raises(UserError, match=r"sha256sums.txt"):
        verify_checksums(tmp_path)
