"""A manifest notices whatever happens to the files it lists, and names them."""

import random

import pytest

from glm_jax.training import manifest
from glm_jax.training.manifest import Damaged

FILES = {
    "params/d/data": bytes(range(256)) * 5,
    "params/index": b"where",
    "meta/metadata": b'{"step": 5}',
    "empty": b"",
}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "5" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "5"


def damage(folder, items=None) -> tuple[str, str]:
    with pytest.raises(Damaged) as caught:
        manifest.verify(folder, items)
    assert "\n" not in str(caught.value)
    return caught.value.kind, str(caught.value)


@pytest.mark.parametrize("count", [1, 3])
def test_the_lists_of_all_processes_are_the_manifest(folder, count):
    for process in range(count):
        kind, message = damage(folder)
        assert kind == "unfinished"
        assert "its save was not finished" in message
        manifest.write(folder, process, count)
    manifest.verify(folder)
    assert not list(folder.rglob("*.tmp"))
    (folder / f"manifest-{count - 1}-of-{count}.json").unlink()
    assert damage(folder)[0] == "unfinished"


def test_every_flipped_bit_is_noticed(folder):
    manifest.write(folder)
    rng = random.Random(0)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    for _ in range(300):
        path = rng.choice(paths)
        before = path.read_bytes()
        place = rng.randrange(len(before))
        flipped = before[place] ^ (1 << rng.randrange(8))
        path.write_bytes(before[:place] + bytes([flipped]) + before[place + 1 :])
        kind, message = damage(folder)
        assert kind == "changed"
        assert f"content of {path.relative_to(folder).as_posix()} is not" in message
        path.write_bytes(before)
    manifest.verify(folder)


def test_files_that_come_go_or_change_their_length_are_named(folder):
    manifest.write(folder)
    (folder / "params" / "index").write_bytes(b"here")
    assert damage(folder) == ("resized", "params/index has 4 bytes, 5 were saved")
    (folder / "params" / "index").unlink()
    assert damage(folder) == ("missing", "params/index is missing")
    (folder / "empty").unlink()
    assert damage(folder) == ("missing", "empty is missing (and 1 more)")
    for name in ("empty", "params/index"):
        (folder / name).write_bytes(FILES[name])
    (folder / "params" / "more").write_bytes(b"")
    assert damage(folder) == ("extra", "params/more is not part of it")


def test_files_that_are_not_read_are_compared_by_name_and_size_only(folder):
    manifest.write(folder)
    (folder / "params" / "index").write_bytes(b"WHERE")
    manifest.verify(folder, ("meta",))
    assert damage(folder, ("params",))[0] == "changed"
    (folder / "params" / "index").write_bytes(b"longer")
    assert damage(folder, ("meta",))[0] == "resized"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"sha256": 1}', b"\xff", b'{"files": 3}'])
def test_a_list_that_is_no_list_is_a_changed_file(folder, content):
    manifest.write(folder)
    (folder / "manifest-0-of-1.json").write_bytes(content)
    assert damage(folder)[0] == "changed"


def test_lists_of_another_number_of_processes_are_not_mixed(folder):
    manifest.write(folder)
    manifest.write(folder, 1, 2)
    assert damage(folder) == ("extra", "manifest-1-of-2.json is not part of it")


def test_what_cannot_be_read_is_damaged(folder):
    manifest.write(folder)
    (folder / "params" / "gone").symlink_to(folder / "nowhere")
    kind, message = damage(folder)
    assert kind == "unreadable"
    assert "gone" in message
