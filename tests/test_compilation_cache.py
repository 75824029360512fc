"""Compiled programs are kept where a verb of another process finds them."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from training.samples import make_batch, tiny_config

from glm_jax.compilation_cache import default_folder, keep_compiled_programs
from glm_jax.config import MeshConfig
from glm_jax.parallel.sharding import make_sharding
from glm_jax.training.step import init_state, make_train_step

HIT, MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """As in a process whose user set no cache; the one of the other tests is put back."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in zip(names, (None, 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def events():
    """Names of the events of jax, as they come."""
    seen = []

    def listen(event, **_):
        seen.append(event)

    jax.monitoring.register_event_listener(listen)
    yield seen
    jax.monitoring.unregister_event_listener(listen)


def train_one_step() -> float:
    """The functions are made, and so compiled, anew."""
    sharding = make_sharding(MeshConfig(), jax.devices()[:1])
    step = make_train_step(tiny_config(), sharding, num_sources=2)
    _, metrics = step(init_state(tiny_config(), sharding), sharding.place(make_batch(0)))
    return float(metrics.sums.loss.sum())


@pytest.mark.slow
def test_a_second_run_compiles_nothing(no_cache, events, tmp_path):
    keep_compiled_programs()
    first = train_one_step()
    assert MISS in events
    assert list(default_folder().glob("jit_step-*"))
    assert tmp_path in default_folder().parents
    events.clear()
    assert train_one_step() == first
    assert HIT in events
    assert MISS not in events


@pytest.mark.parametrize("chosen", ["/elsewhere", ""])
def test_the_choice_of_the_user_stands(no_cache, chosen):
    jax.config.update("jax_compilation_cache_dir", chosen)
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == chosen


def test_a_home_that_cannot_be_written_is_no_error(no_cache, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir is None


def test_a_user_without_a_home_has_no_cache(no_cache, monkeypatch):
    """As in a container that runs under a number that no user has."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir is None
