"""Safetensors files: what comes out, what a damaged file or index is told, and how much memory."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from commands import run_command

from glm_jax.errors import UserError
from glm_jax.layouts.safetensors_files import INDEX, WEIGHTS, SafetensorsFiles

FLOATS = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
OTHERS = [np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_]


def save(path, **tensors) -> None:
    safetensors.numpy.save_file(tensors, path)


def write_index(folder, **weight_map) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("dtype", FLOATS + OTHERS, ids=lambda dtype: np.dtype(dtype).name)
def test_tensors_come_out_as_they_were_saved(tmp_path, dtype):
    rng = np.random.default_rng(0)
    shapes = {"matrix": (3, 5), "vector": (7,), "scalar": (), "nothing": (0, 4)}
    tensors = {name: (rng.normal(size=shape) * 9).astype(dtype) for name, shape in shapes.items()}
    tensors = {name: np.asarray(array, dtype) for name, array in tensors.items()}
    save(tmp_path / WEIGHTS, **tensors)
    read = SafetensorsFiles(tmp_path)
    assert set(read) == set(tensors)
    assert len(read) == 4
    for name, array in tensors.items():
        assert read.shape(name) == read[name].shape == array.shape
        assert read.dtype(name) == read[name].dtype == array.dtype
        assert read[name].tobytes() == array.tobytes()
        assert not read[name].flags.writeable
        assert read.file(name) == tmp_path / WEIGHTS


def test_data_that_are_not_aligned_are_read(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    assert (8 + len(header)) % 4
    data = np.array([1.5, -2], np.float32).tobytes()
    (tmp_path / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + data)
    np.testing.assert_array_equal(SafetensorsFiles(tmp_path)["a"], [1.5, -2])


def test_shards_are_one_mapping(tmp_path):
    save(tmp_path / "one.safetensors", a=np.zeros(2))
    save(tmp_path / "two.safetensors", b=np.ones(2))
    write_index(tmp_path, a="one.safetensors", b="two.safetensors")
    read = SafetensorsFiles(tmp_path)
    assert {name: read[name].tolist() for name in read} == {"a": [0, 0], "b": [1, 1]}
    assert read.file("b").name == "two.safetensors"


def test_a_file_of_any_name_is_found_alone(tmp_path):
    save(tmp_path / "weights.safetensors", a=np.zeros(2))
    assert list(SafetensorsFiles(tmp_path)) == ["a"]
    assert list(SafetensorsFiles(tmp_path / "weights.safetensors")) == ["a"]
    save(tmp_path / "others.safetensors", b=np.zeros(2))
    with pytest.raises(UserError, match=r"has 2 .safetensors files and no model.safetensors.index"):
        SafetensorsFiles(tmp_path)


def test_weights_must_be_floating_and_buffers_need_not(tmp_path):
    save(tmp_path / WEIGHTS, weight=np.ones(2, np.int8), position_ids=np.arange(3))
    read = SafetensorsFiles(tmp_path)
    assert read["position_ids"].tolist() == [0, 1, 2]
    with pytest.raises(UserError, match=r"model.safetensors: tensor 'weight' .* int8.* quantised"):
        read.floating("weight")


def test_dtypes_without_a_numpy_dtype_are_named(tmp_path):
    header = b'{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    (tmp_path / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"12")
    with pytest.raises(UserError, match=r"tensor 'a' is stored as F8_E4M3, .*quantised"):
        SafetensorsFiles(tmp_path)["a"]


def test_floating_weights_are_what_brackets_return(tmp_path):
    save(tmp_path / WEIGHTS, a=np.ones(2, ml_dtypes.bfloat16))
    assert SafetensorsFiles(tmp_path).floating("a").tolist() == [1, 1]


@pytest.mark.parametrize("damage", ["cut data", "cut header", "flipped header", "empty", "no JSON"])
def test_a_damaged_file_is_named(tmp_path, damage):
    file = tmp_path / WEIGHTS
    save(file, a=np.zeros(64))
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"64")] ^= 1
    content = {
        "cut data": whole[:-1],
        "cut header": whole[:20],
        "flipped header": bytes(flipped),
        "empty": b"",
        "no JSON": b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense",
    }
    file.write_bytes(content[damage])
    with pytest.raises(UserError, match=r"model.safetensors is not a readable safetensors file"):
        SafetensorsFiles(tmp_path)


def test_a_path_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"neither a .safetensors file nor a folder"):
        SafetensorsFiles(tmp_path)
    with pytest.raises(UserError, match=r"absent is neither a .safetensors file nor a folder"):
        SafetensorsFiles(tmp_path / "absent")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": [1]}', "\x00"])
def test_an_index_that_is_none_is_named(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(UserError, match=r"index.json is not an index of weight files"):
        SafetensorsFiles(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "absent.safetensors", "..", "", 3, None])
def test_an_index_names_files_beside_it(tmp_path, name):
    save(tmp_path / "secret.safetensors", a=np.zeros(2))
    folder = tmp_path / "model"
    folder.mkdir()
    write_index(folder, a=name)
    with pytest.raises(UserError) as caught:
        SafetensorsFiles(folder)
    expected = f"{folder / INDEX} names {name!r} for tensor 'a', which is not a file beside it"
    assert str(caught.value) == expected


def test_an_index_cannot_name_an_absolute_path(tmp_path):
    save(tmp_path / "one.safetensors", a=np.zeros(2))
    write_index(tmp_path, a=str(tmp_path / "one.safetensors"))
    with pytest.raises(UserError, match="not a file beside it"):
        SafetensorsFiles(tmp_path)


def test_index_and_files_must_agree(tmp_path):
    save(tmp_path / "one.safetensors", a=np.zeros(2))
    save(tmp_path / "two.safetensors", b=np.zeros(2))
    write_index(tmp_path, a="one.safetensors", b="two.safetensors", c="two.safetensors")
    with pytest.raises(UserError, match=r"says that two.safetensors holds tensor 'c', which it"):
        SafetensorsFiles(tmp_path)
    write_index(tmp_path, a="two.safetensors", b="one.safetensors")
    with pytest.raises(UserError, match=r"says that two.safetensors holds tensor 'a', which it"):
        SafetensorsFiles(tmp_path)


def test_tensors_must_be_in_the_index_and_in_one_file(tmp_path):
    save(tmp_path / "one.safetensors", a=np.zeros(2), extra=np.zeros(2))
    save(tmp_path / "two.safetensors", b=np.zeros(2))
    write_index(tmp_path, a="one.safetensors", b="two.safetensors")
    with pytest.raises(UserError, match=r"one.safetensors holds tensor 'extra', which .* not name"):
        SafetensorsFiles(tmp_path)
    save(tmp_path / "one.safetensors", a=np.zeros(2))
    save(tmp_path / "two.safetensors", b=np.zeros(2), a=np.zeros(2))
    with pytest.raises(UserError, match=r"tensor 'a' is in .*one.safetensors and in .*two.safeten"):
        SafetensorsFiles(tmp_path)


MEMORY = """
import re, sys
import numpy as np
from pathlib import Path
from glm_jax.layouts.safetensors_files import SafetensorsFiles
from glm_jax.layouts.tensor_writer import TensorWriter

def peak():  # KiB
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

out, before = sys.argv[1], peak()
shapes = {f"layers.{i}": (1024, 6400) for i in range(12)}
writer = TensorWriter(out, shapes, np.float32)
for row in (0, 512):  # twice through all tensors, as import and export go through layers
    for number, name in enumerate(shapes):
        writer.tensor(name)[row:row + 512] = number
writer.finish()
written = peak()
read = SafetensorsFiles(out)
total = sum(float(read[name].max()) for name in read)
print(sum(read[name].nbytes for name in read), written - before, peak() - before, total)
"""


def test_a_file_larger_than_the_memory_it_takes(tmp_path):
    finished = run_command("-c", MEMORY, str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    size, writing, both, total = map(float, finished.stdout.split())
    assert total == sum(range(12))
    assert size > 300e6
    assert writing < 100_000  # KiB
    assert both < 100_000
