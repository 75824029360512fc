"""Checkpoints that can be believed: verified, set aside, never lost, and refused when they misfit.

States are random numbers in a few small arrays, or in those of a tiny model where the layout of a
model is needed; nothing is compiled.
"""

import errno
import json
import os
import random
import shutil
import subprocess
import threading
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from commands import run_command
from training.samples import changed, tiny_config

from glm_jax.config import CheckpointConfig, Config, MeshConfig, to_dict
from glm_jax.errors import UserError
from glm_jax.parallel.sharding import make_sharding
from glm_jax.training import checkpoint, manifest
from glm_jax.training.bad_steps import History
from glm_jax.training.checkpoint import SAVE_AGAIN, Checkpoints, DataPosition, Restored
from glm_jax.training.health import health
from glm_jax.training.step import TrainState, state_shardings
from glm_jax.training.step_folders import superseded
from glm_jax.training.trained_params import load_params

CONFIG = tiny_config()
SMALL = {"num_layers": 1, "hidden_dim": 16, "mlp_dim": 16, "num_heads": 2}
MODEL = changed(CONFIG, "model", **SMALL)
WITH_EMA = changed(MODEL, "optimizer", ema_decay=0.9)
DATA = {"en": ["abc", 7]}


def layout(config: Config = CONFIG, **mesh) -> tuple[TrainState, TrainState]:
    """Abstract state and its shardings, on one device unless `mesh` names more."""
    mesh = {"data": 1} | mesh
    sharding = make_sharding(MeshConfig(**mesh), jax.devices()[: np.prod(list(mesh.values()))])
    if config is not CONFIG:
        return state_shardings(config, sharding)
    kernel, bias = jax.ShapeDtypeStruct((4, 8), "float32"), jax.ShapeDtypeStruct((8,), "bfloat16")
    params = {"embedding": kernel, "mlp": {"bias": bias}}
    moments = ({"mu": {"embedding": kernel, "mlp/bias": bias}}, optax.EmptyState())
    counter = jax.ShapeDtypeStruct((), "int32")
    history = History(bias, bias, counter, counter)
    abstract = TrainState(params, None, moments, history, counter)
    return abstract, jax.tree.map(lambda _: sharding.replicated, abstract)


def state_of(step: int, config: Config = CONFIG) -> TrainState:
    """Random numbers, the same for the same step."""
    rng = np.random.default_rng(step)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape).astype(leaf.dtype)), layout(config)[0]
    )
    return state._replace(step=jnp.int32(step))


def save(checkpoints: Checkpoints, step: int, config: Config = CONFIG, loss: float | None = None):
    validation = None if loss is None else {"loss": loss, "accuracy": float("nan")}
    checkpoints.save(state_of(step, config), config, DataPosition(8 * step, {}), DATA, validation)


def save_two(workdir: Path, config: Config) -> Path:
    checkpoints = Checkpoints(write_config(workdir, config), config.checkpoint)
    save(checkpoints, 5, config, loss=2.0)
    save(checkpoints, 10, config)
    checkpoints.close()
    return workdir


def write_config(workdir: Path, config: Config) -> Path:
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(to_dict(config)))
    return workdir


def assert_same(ours, theirs) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def restore(workdir: Path, config: Config = CONFIG, **arguments) -> Restored | None:
    checkpoints = Checkpoints(workdir, config.checkpoint)
    try:
        return checkpoints.restore_newest(*layout(config), **arguments)
    finally:
        checkpoints.close()


def refusal(workdir: Path, config: Config = CONFIG, **arguments) -> str:
    with pytest.raises(UserError) as caught:
        restore(workdir, config, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run of small arrays with checkpoints of steps 5 and 10; not to be changed."""
    return save_two(tmp_path_factory.mktemp("saved") / "run", CONFIG)


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory) -> Path:
    """The same with the arrays of a model."""
    return save_two(tmp_path_factory.mktemp("saved") / "run", MODEL)


@pytest.fixture
def run(saved, tmp_path) -> Path:
    """A copy of the run of small arrays."""
    return shutil.copytree(saved, tmp_path / "run")


@pytest.fixture
def model_run(saved_model, tmp_path) -> Path:
    """A copy of the run of a model."""
    return shutil.copytree(saved_model, tmp_path / "model")


def test_the_newest_state_and_what_was_said_of_it_come_back(saved):
    restored = restore(saved)
    assert_same(restored.state, state_of(10))
    assert restored.state.step.sharding == layout()[1].step
    assert restored.meta["next_row"] == 80
    assert restored.meta["data"] == DATA
    assert restored.meta["format_version"] == 3
    assert restored.meta["versions"]["jax"] == jax.__version__
    assert restored.meta["config"]["model"]["num_layers"] == 2
    assert restored.meta["validation"] is None
    older = json.loads((saved / "checkpoints" / "5" / "meta" / "metadata").read_text())
    assert older["validation"] == {"loss": 2.0, "accuracy": None}
    assert restored.set_aside == []
    checkpoints = Checkpoints(saved, CONFIG.checkpoint)
    assert checkpoints.latest_step == 10
    checkpoints.close()


def test_a_run_without_checkpoints_has_nothing_to_restore(tmp_path):
    assert restore(tmp_path) is None
    assert not any((tmp_path / "checkpoints").iterdir())


@pytest.mark.multidevice
def test_a_state_is_laid_out_on_another_mesh(saved_model):
    checkpoints = Checkpoints(saved_model, MODEL.checkpoint)
    abstract, shardings = layout(MODEL, fsdp=2, model=2)
    restored = checkpoints.restore_newest(abstract, shardings)
    checkpoints.close()
    assert_same(restored.state, state_of(10, MODEL))
    for array, sharding in zip(
        jax.tree.leaves(restored.state), jax.tree.leaves(shardings), strict=True
    ):
        assert array.sharding == sharding


def test_sixty_flipped_bits_are_sixty_checkpoints_set_aside(run):
    checkpoints = Checkpoints(run, CONFIG.checkpoint)
    abstract, shardings = layout()
    folder = run / "checkpoints" / "10"
    rng = random.Random(0)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
    expected = state_of(5)
    for _ in range(60):
        path = rng.choice(files)
        before = path.read_bytes()
        flip(path, rng)
        restored = checkpoints.restore_newest(abstract, shardings)
        [bad] = restored.set_aside
        assert (bad.step, bad.moved_to.name) == (10, "10.changed")
        assert f"content of {path.relative_to(folder).as_posix()} is not" in bad.reason
        assert_same(restored.state, expected)
        bad.moved_to.rename(folder)
        path.write_bytes(before)
    assert_same(checkpoints.restore_newest(abstract, shardings).state, state_of(10))
    checkpoints.close()


KINDS = (
    "params/d/*",
    "params/manifest.ocdbt",
    "params/ocdbt.process_0/d/*",
    "params/_METADATA",
    "params/_sharding",
    "params/array_metadatas/*",
    "params/commit_success.txt",
    "opt_state/d/*",
    "history/manifest.ocdbt",
    "meta/metadata",
    "commit_success.txt",
    "_CHECKPOINT_METADATA",
)


@pytest.mark.parametrize("pattern", KINDS)
def test_a_file_that_is_cut_short_or_gone_is_named(run, pattern):
    folder = run / "checkpoints" / "10"
    path = sorted(folder.glob(pattern))[0]
    name, length = path.relative_to(folder).as_posix(), path.stat().st_size
    os.truncate(path, length // 2)
    restored = restore(run)
    [bad] = restored.set_aside
    assert bad.reason == f"{name} has {length // 2:,} bytes, {length:,} were saved"
    assert int(restored.state.step) == 5
    again = bad.moved_to.rename(folder)
    (again / name).unlink()
    [bad] = restore(run).set_aside
    assert (bad.moved_to.name, bad.reason) == ("10.missing", f"{name} is missing")


def test_items_that_are_gone_or_foreign_are_noticed(run):
    root = run / "checkpoints"
    shutil.rmtree(root / "10" / "opt_state")
    (root / "5" / "notes").mkdir()
    (root / "5" / "notes" / "mine.txt").write_text("mine")
    message = refusal(run)
    assert "set_aside/10.missing (opt_state/" in message
    assert "set_aside/5.extra (notes/mine.txt is not part of it)" in message
    assert (root / "set_aside" / "5.extra" / "notes" / "mine.txt").read_text() == "mine"


def test_without_a_good_checkpoint_a_run_never_begins_again_by_itself(run):
    for step in ("5", "10"):
        flip(run / "checkpoints" / step / "meta" / "metadata", random.Random(1))
    first = refusal(run)
    assert f"{run}/checkpoints has no good checkpoint to go on from: set_aside/5.changed" in first
    assert "set_aside/10.changed (the content of meta/metadata" in first
    assert "set_aside/10.changed" in refusal(run)


def test_what_is_set_aside_gets_a_name_of_its_own(run):
    root = run / "checkpoints"
    for number in ("", ".2", ".3"):
        shutil.copytree(root / "10", root / "kept")
        (root / "10" / "meta" / "metadata").unlink()
        assert restore(run).set_aside[0].moved_to == root / "set_aside" / f"10.missing{number}"
        (root / "kept").rename(root / "10")


def test_a_checkpoint_whose_save_was_not_finished_is_not_used(run):
    (run / "checkpoints" / "10" / "manifest-0-of-1.json").unlink()
    restored = restore(run)
    assert int(restored.state.step) == 5
    assert restored.set_aside[0].moved_to.name == "10.unfinished"
    assert "its save was not finished" in restored.set_aside[0].reason


def test_a_run_killed_in_its_first_save_begins_again(run):
    shutil.rmtree(run / "checkpoints" / "10")
    (run / "checkpoints" / "5" / "manifest-0-of-1.json").unlink()
    assert restore(run) is None
    assert (run / "checkpoints" / "set_aside" / "5.unfinished").is_dir()
    assert restore(run) is None


def test_manifests_that_somebody_removed_do_not_make_a_run_begin_again(run):
    for step in ("5", "10"):
        (run / "checkpoints" / step / "manifest-0-of-1.json").unlink()
    assert "no good checkpoint" in refusal(run)


def test_a_checkpoint_under_the_name_of_another_step_is_not_used(run):
    (run / "checkpoints" / "10").rename(run / "checkpoints" / "30")
    restored = restore(run)
    assert restored.set_aside[0].moved_to.name == "30.renamed"
    assert int(restored.state.step) == 5


def test_what_orbax_cannot_read_is_set_aside(run):
    folder = run / "checkpoints" / "10"
    (folder / "params" / "_METADATA").write_text("{")
    manifest.write(folder)
    restored = restore(run)
    assert restored.set_aside[0].moved_to.name == "10.unreadable"
    assert restored.set_aside[0].reason.startswith("Orbax cannot read it: ")
    assert "\n" not in restored.set_aside[0].reason
    assert int(restored.state.step) == 5


def test_a_machine_that_is_too_small_is_no_reason_to_set_aside(run, monkeypatch):
    def out_of_memory(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr("orbax.checkpoint.AsyncCheckpointer.restore", out_of_memory)
    with pytest.raises(jax.errors.JaxRuntimeError):
        restore(run)
    assert not (run / "checkpoints" / "set_aside").exists()


def test_after_going_back_the_same_steps_are_saved_again(run):
    checkpoints = Checkpoints(run, CONFIG.checkpoint)
    abstract, shardings = layout()
    save(checkpoints, 15)
    restored = checkpoints.restore_newest(abstract, shardings, before=10)
    assert_same(restored.state, state_of(5))
    assert [(s.step, s.moved_to.name) for s in restored.set_aside] == [
        (15, "15.rewound"),
        (10, "10.rewound"),
    ]
    assert restored.set_aside[0].reason == "training went back to step 5"
    assert checkpoints.latest_step == 5
    other = jax.tree.map(lambda leaf: leaf + 1, state_of(10))._replace(step=jnp.int32(10))
    checkpoints.save(other, CONFIG, DataPosition(0, {}), DATA, None)
    assert_same(checkpoints.restore_newest(abstract, shardings).state, other)
    checkpoints.save(other, CONFIG, DataPosition(1, {}), DATA, None)
    restored = checkpoints.restore_newest(abstract, shardings)
    assert restored.meta["next_row"] == 1
    assert (run / "checkpoints" / "set_aside" / "10.replaced").is_dir()
    checkpoints.close()


def test_nothing_is_moved_when_there_is_nothing_to_go_back_to(run):
    before = contents(run)
    assert "5 (too late)" in refusal(run, before=5)
    assert contents(run) == before


def test_leftovers_of_killed_runs_are_removed_and_nothing_else(run):
    root = run / "checkpoints"
    for name in ("15.orbax-checkpoint-tmp", "20.orbax-checkpoint-tmp-1700000000", "2.deleting"):
        (root / name / "params").mkdir(parents=True)
        (root / name / "params" / "data").write_text("half")
    theirs = {"notes/todo.txt", "15.orbax-checkpoint-tmp.txt", "x.deleting/a", "88/mine.txt"}
    for name in theirs:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("mine")
    assert int(restore(run).state.step) == 10
    assert {path.name for path in root.iterdir()} == {"5", "10"} | {
        name.split("/")[0] for name in theirs
    }
    assert {(root / name).read_text() for name in theirs} == {"mine"}


def test_what_is_no_checkpoint_is_ignored_until_its_name_is_needed(run):
    root = run / "checkpoints"
    for name in ("99", "notes", "012", "88", "set_aside"):
        (root / name).mkdir()
    (root / "77").write_text("mine")
    (root / "88" / "mine.txt").write_text("mine")
    checkpoints = Checkpoints(run, CONFIG.checkpoint)
    assert checkpoints.latest_step == 10
    assert checkpoints.restore_newest(*layout()).set_aside == []
    assert [one.step for one in health(run)] == [5, 10]
    for step in (77, 88, 99):
        save(checkpoints, step)
    checkpoints.close()
    assert_same(restore(run).state, state_of(99))
    assert (root / "set_aside" / "77.foreign").read_text() == "mine"
    assert (root / "set_aside" / "88.foreign" / "mine.txt").read_text() == "mine"


def test_kept_are_the_latest_the_best_and_every_nth(tmp_path):
    for step, loss in {1: 3.0, 2: 1.0, 3: None, 4: 2.0, 5: 0.5, 6: 1.5, 7: 9.0}.items():
        (tmp_path / f"{step}" / "meta").mkdir(parents=True)
        validation = None if loss is None else {"loss": loss}
        meta = tmp_path / f"{step}" / "meta" / "metadata"
        meta.write_text(json.dumps({"validation": validation}) if step != 6 else "damaged")
        if step != 5:  # whose save was not finished
            manifest.write(tmp_path / f"{step}")
    config = CheckpointConfig(keep_latest=1, keep_every=4, keep_best=1)
    assert superseded(tmp_path, config) == [1, 3, 6]  # 7 is the latest, 2 the best
    config = CheckpointConfig(keep_latest=2, keep_every=0, keep_best=0)
    assert superseded(tmp_path, config) == [1, 2, 3, 4]


def test_nothing_is_deleted_before_the_new_checkpoint_counts(tmp_path, monkeypatch):
    config = changed(CONFIG, "checkpoint", keep_latest=1, keep_best=0)
    checkpoints = Checkpoints(tmp_path, config.checkpoint)
    save(checkpoints, 1, config)
    checkpoints.wait()
    write, go_on, committed = manifest.write, threading.Event(), threading.Event()

    def slow(*arguments):
        committed.set()
        go_on.wait(60)
        write(*arguments)

    monkeypatch.setattr(manifest, "write", slow)
    save(checkpoints, 2, config)
    assert committed.wait(60)
    checkpoints.check()  # does not wait: the save cannot end before `go_on`
    assert checkpoints.latest_step == 1
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}
    go_on.set()
    checkpoints.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2"}


def test_a_disk_that_is_too_small_is_known_before_the_save(run, monkeypatch):
    checkpoints = Checkpoints(run, CONFIG.checkpoint)
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 10, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"15 was not saved: it needs .* MB are missing$"):
        save(checkpoints, 15)
    checkpoints.close()
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"5", "10"}


def test_a_save_that_fails_in_the_background_is_raised_once_at_the_next_step(run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "manifest-0-of-1.json")

    checkpoints = Checkpoints(run, CONFIG.checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write", full)
        save(checkpoints, 15)
        message = eventually_raised(checkpoints)
    assert message == f"checkpoint {run}/checkpoints/15 was not saved: No space left on device"
    checkpoints.check()
    checkpoints.close()
    restored = restore(run)
    assert int(restored.state.step) == 10
    assert restored.set_aside[0].moved_to.name == "15.unfinished"


@pytest.mark.parametrize("step", [15, 20])
def test_storage_that_is_away_is_tried_again(run, monkeypatch, step):
    """The same step, as at the end of a run, or a later one."""
    monkeypatch.setattr(checkpoint, "_SHORTEST_PAUSE", 0.2)
    failures = []
    checkpoints = Checkpoints(
        run, CONFIG.checkpoint, on_failure=lambda *failure: failures.append(failure)
    )
    root, away = run / "checkpoints", run / "away"
    root.rename(away)
    save(checkpoints, 15)
    checkpoints.wait()
    assert checkpoints.has_failed
    assert checkpoints.wish() is None
    ((at, reason),) = failures
    assert at == 15
    assert reason.startswith(f"checkpoint {root}/15 was not saved: FileNotFoundError: ")
    away.rename(root)
    checkpoints.pause()
    assert checkpoints.wish() == SAVE_AGAIN
    save(checkpoints, step)
    assert checkpoints.wish() is None
    checkpoints.close()
    assert not checkpoints.has_failed
    assert checkpoints.latest_step == step
    assert_same(restore(run).state, state_of(step))


def test_storage_that_stays_away_is_an_error(run, monkeypatch):
    monkeypatch.setattr(checkpoint, "_SHORTEST_PAUSE", 0.05)
    config = changed(CONFIG, "checkpoint", retry_seconds=0.2)
    checkpoints = Checkpoints(run, config.checkpoint)
    (run / "checkpoints").rename(run / "away")
    message = r"15 was not saved: FileNotFoundError.*, tried for \d+ s$"
    with pytest.raises(UserError, match=message):  # noqa: PT012
        while True:
            save(checkpoints, 15)
            checkpoints.wait()
            checkpoints.pause()
    checkpoints.close()


def eventually_raised(checkpoints: Checkpoints) -> str:
    """What the calls of a training loop raise in the end."""
    with pytest.raises(UserError) as caught:  # noqa: PT012
        for _ in range(6000):
            checkpoints.check()
            threading.Event().wait(0.01)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for a few checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_older_checkpoints_and_one_line(small_disk, monkeypatch, capfd):
    """The space that is free before a save may be gone during it."""
    plenty = namedtuple("usage", "total used free")(10**9, 0, 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: plenty)
    config = changed(CONFIG, "checkpoint", keep_latest=100)
    checkpoints = Checkpoints(small_disk, config.checkpoint)
    save(checkpoints, 1)
    checkpoints.wait()
    step = 1
    with pytest.raises(UserError) as caught:  # noqa: PT012
        while step < 50:
            step += 1
            save(checkpoints, step)
            checkpoints.wait()
    folder = small_disk / "checkpoints"
    assert str(caught.value) == f"checkpoint {folder}/{step} was not saved: No space left on device"
    assert {path.name for path in folder.iterdir()} - {f"{step}"} == set(map(str, range(1, step)))
    assert "Traceback" not in "".join(capfd.readouterr())
    assert_same(checkpoints.restore_newest(*layout()).state, state_of(step - 1))
    checkpoints.close()


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(UserError, match="checkpoints cannot be used: "):
        Checkpoints(tmp_path, CONFIG.checkpoint)


def test_another_dtype_is_refused_and_not_cast(saved):
    abstract, shardings = layout()
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "bfloat16"), abstract.params)
    checkpoints = Checkpoints(saved, CONFIG.checkpoint)
    with pytest.raises(UserError) as caught:
        checkpoints.restore_newest(abstract._replace(params=half), shardings)
    checkpoints.close()
    assert str(caught.value) == (
        f"{saved}/checkpoints/10 does not fit this config: "
        "params/embedding is float32[4, 8] there and bfloat16[4, 8] here"
    )


@pytest.mark.parametrize(
    ("section", "fields", "expected"),
    [
        ("model", {"mlp_dim": 32}, "is float32[1, 16, 16] there and float32[1, 16, 32] here"),
        ("optimizer", {"name": "adafactor"}, "is absent there and float32[16] here"),
        ("optimizer", {"ema_decay": 0.9}, "ema/block_position_embedding/embedding is absent there"),
        ("bad_steps", {"window": 8}, "history/grad_norm is float32[128] there and float32[8] here"),
    ],
)
def test_another_structure_or_shape_is_refused(saved_model, section, fields, expected):
    message = refusal(saved_model, changed(MODEL, section, **fields))
    assert message.startswith(f"{saved_model}/checkpoints/10 does not fit this config: ")
    assert expected in message
    assert not (saved_model / "checkpoints" / "set_aside").exists()


def test_the_first_format_is_refused(run):
    for step in ("5", "10"):
        folder = run / "checkpoints" / step
        (folder / "manifest-0-of-1.json").unlink()
        meta = json.loads((folder / "meta" / "metadata").read_text())
        (folder / "meta" / "metadata").write_text(json.dumps(meta | {"format_version": 1}))
    expected = f"{run}/checkpoints/10 has format 1, this program reads 3"
    assert refusal(run) == expected
    with pytest.raises(UserError) as caught:
        load_params(run)
    assert str(caught.value) == expected
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"5", "10"}


def test_bfloat16_and_a_moving_average_come_back(tmp_path):
    config = changed(WITH_EMA, "model", param_dtype="bfloat16")
    workdir = write_config(tmp_path / "run", config)
    checkpoints = Checkpoints(workdir, config.checkpoint)
    save(checkpoints, 3, config)
    assert_same(checkpoints.restore_newest(*layout(config)).state, state_of(3, config))
    checkpoints.close()
    for ema in (False, True):
        _, params, step = load_params(workdir, ema=ema)
        state = state_of(3, config)
        assert_same(params, state.ema if ema else state.params)
        assert step == 3
        assert jax.tree.leaves(params)[0].dtype == ("float32" if ema else ml_dtypes.bfloat16)


def test_parameters_are_loaded_on_the_host_or_on_a_mesh(saved_model):
    config, params, step = load_params(saved_model)
    assert (config, step) == (MODEL, 10)
    assert_same(params, state_of(10, MODEL).params)
    assert {type(leaf) for leaf in jax.tree.leaves(params)} == {np.ndarray}
    _, params, step = load_params(saved_model, 5)
    assert step == 5
    assert_same(params, state_of(5, MODEL).params)
    sharding = make_sharding(MeshConfig(data=1), jax.devices()[:1])
    _, params, _ = load_params(saved_model, sharding=sharding)
    assert_same(params, state_of(10, MODEL).params)
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(params)} == {sharding.mesh}


def test_loading_parameters_changes_nothing_on_disk(model_run, capsys):
    root = model_run / "checkpoints"
    flip(root / "10" / "params" / "manifest.ocdbt", random.Random(0))
    (root / "15.orbax-checkpoint-tmp").mkdir()
    before, names = contents(model_run), sorted(root.iterdir())
    assert load_params(model_run)[2] == 5
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"checkpoint {root}/10 is passed over: the content of params/manifest")
    with pytest.raises(UserError, match=f"checkpoint {root}/10 is not good: the content of params"):
        load_params(model_run, 10)
    assert (contents(model_run), sorted(root.iterdir())) == (before, names)
    flip(root / "5" / "params" / "_METADATA", random.Random(0))
    with pytest.raises(
        UserError, match=f"{model_run} has no good checkpoint; it has steps .5, 10.$"
    ):
        load_params(model_run)


def test_parameters_that_cannot_be_had_are_one_line(model_run):
    with pytest.raises(UserError, match=r"has no checkpoint 7; it has steps \[5, 10\]"):
        load_params(model_run, 7)
    with pytest.raises(UserError, match="keeps no moving average: config.optimizer.ema_decay is 0"):
        load_params(model_run, ema=True)
    config = changed(MODEL, "model", mlp_dim=32)
    (model_run / "config.json").write_text(json.dumps(to_dict(config)))
    with pytest.raises(UserError, match="10 does not fit this config: params/.* here"):
        load_params(model_run)
    (model_run / "config.json").write_text(json.dumps(to_dict(WITH_EMA)))
    with pytest.raises(UserError, match="10 does not fit this config: ema/.* absent there"):
        load_params(model_run, ema=True)
    shutil.rmtree(model_run / "checkpoints")
    with pytest.raises(UserError, match=r"has no checkpoint; it has steps \[\]"):
        load_params(model_run)


def test_health_is_that_of_every_checkpoint(run):
    flip(run / "checkpoints" / "10" / "opt_state" / "_METADATA", random.Random(0))
    good, bad = health(run)
    assert (good.step, good.good, good.reason) == (5, True, "")
    assert good.bytes == sum(map(len, contents(run / "checkpoints" / "5").values()))
    assert 0 < good.saved_at < bad.saved_at
    assert (bad.step, bad.good) == (10, False)
    assert "content of opt_state/_METADATA" in bad.reason
    restore(run)
    aside = health(run)[1]
    assert (aside.step, aside.good) == (10, False)
    assert aside.reason == "changed: set aside as set_aside/10.changed"
    assert (aside.bytes, aside.saved_at) == (bad.bytes, bad.saved_at)
    (run / "checkpoints" / "5" / "meta" / "metadata").unlink()
    assert health(run)[0].saved_at is None
    assert health(run / "nowhere") == []


def test_the_benchmark_prints_a_table():
    finished = run_command("benchmarks/checkpoint.py", "--megabytes=2", "--rounds=1")
    assert finished.returncode == 0, finished.stderr
    lines = [line for line in finished.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 8
