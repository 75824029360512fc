"""Trains or resumes a run: `python -m glm_jax.train --config=configs/X.py --workdir=D`.

Run the same line again to resume from the newest good checkpoint, and the same line on every host
of several. SIGTERM and Ctrl-C save and end with exit code 0, as --max_steps and --max_minutes do;
2 is a mistake that somebody has to mend; after 42 the same line is to be run again.
"""

import contextlib
import functools
import json
import time
from pathlib import Path

import jax
from absl import flags

from glm_jax import cli
from glm_jax.config import Config, with_vocab_size
from glm_jax.data.dataset import Dataset, load_tokenizer, open_dataset, with_sources
from glm_jax.data.reading import describe_reading, describe_rows
from glm_jax.first_state import first_state, released_params
from glm_jax.mesh_rules import with_mesh_rules
from glm_jax.ops.range_attention import resolve_backend
from glm_jax.parallel.hosts import ALONE, Hosts
from glm_jax.parallel.sharding import Sharding, make_sharding, parameter_table
from glm_jax.parallel.watch import Watch, watched
from glm_jax.same_program import check_same_program
from glm_jax.session import Run, Session
from glm_jax.training.checkpoint import Checkpoints, SetAside
from glm_jax.training.evaluation import check_batches
from glm_jax.training.logged_samples import check_samples
from glm_jax.training.optimizer import describe_optimizer
from glm_jax.training.run_folder import check_is_shared, is_run, locked, open_run, save_config
from glm_jax.training.speed import make_machine
from glm_jax.training.step import TrainState, state_shardings
from glm_jax.training.stopping import Stopping
from glm_jax.training.surroundings import count_params, mesh_shape
from glm_jax.training.writers import NO_WRITER, Writer, make_writers, steps_of

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_config_flag()
    cli.define_hosts_flags()
    flags.DEFINE_string("workdir", None, "Folder of the run; created, or resumed.")
    flags.DEFINE_integer(
        "max_steps", None, "Stop after this step; the schedule still runs to training.steps.", 1
    )
    flags.DEFINE_float("max_minutes", None, "Stop this session after so many minutes.", 0)
    flags.DEFINE_bool("allow_config_change", False, "Resume although rows or parameters change.")


def main() -> None:
    config, workdir = cli.load_config(), Path(cli.required("workdir"))
    with (
        Stopping(FLAGS.max_steps, FLAGS.max_minutes) as stopping,
        watched(cli.place(), config.hosts, stopping.wish, FLAGS.hosts_timeout) as (hosts, watch),
    ):
        run(
            config,
            workdir,
            stopping,
            allow_config_change=FLAGS.allow_config_change,
            hosts=hosts,
            watch=watch,
        )


def run(
    config: Config,
    workdir: Path,
    stopping: Stopping | None = None,
    *,
    devices: list[jax.Device] | None = None,
    allow_config_change: bool = False,
    hosts: Hosts = ALONE,
    watch: Watch | None = None,
) -> TrainState:
    """Trains to `config.training.steps`, from the folder's newest good checkpoint if there is one.

    Args:
      stopping: what may end the session earlier.
      devices: what the mesh is made of; None for all.
      allow_config_change: resume although fields that decide rows or parameters differ.
      hosts: the processes that train together.
      watch: over them; None: nobody watches.
    """
    began = time.time()
    stopping = stopping or Stopping()
    watch = watch or Watch(hosts, config.hosts, stopping.wish)
    tokenizer = load_tokenizer(config)
    check_samples(config, tokenizer)
    config = with_sources(with_vocab_size(config, tokenizer.vocab_size))
    dataset = open_dataset(config, tokenizer)
    check_same_program(hosts, config, dataset, tokenizer, stopping.max_steps)
    config = for_devices(config, devices or jax.devices())
    sharding = make_sharding(config.mesh, devices)
    check_batches(config, sharding)
    resolve_backend(config.model.attention_backend)
    print(describe(config, dataset, sharding))
    open_it = functools.partial(
        open_run, workdir, config, tokenizer, allow_config_change=allow_config_change
    )
    changes = open_it() if hosts.is_first and is_run(workdir) else []
    init = released_params(config, sharding, workdir, tokenizer)
    if hosts.is_first and not is_run(workdir):
        open_it()  # only now: what cannot be read leaves no folder behind
    check_is_shared(workdir, hosts)
    with (
        locked(workdir) if hosts.is_first else contextlib.nullcontext(),
        contextlib.closing(_open_log(workdir, config, hosts)) as log,
        contextlib.closing(
            Checkpoints(
                workdir,
                config.checkpoint,
                functools.partial(report_damage, log),
                functools.partial(report_failed_save, log),
                hosts,
            )
        ) as checkpoints,
        watch.guarding(),
    ):
        watch.keep_signs_in(workdir / "hosts")
        about = Run(config, dataset, tokenizer, sharding, workdir, hosts, watch, stopping.max_steps)
        session = Session(about, checkpoints, log)
        validated = json.dumps(sorted(steps_of(workdir, "validation")))
        start = session.restore_or_init(
            functools.partial(first_state, config, sharding, workdir, init, hosts),
            changes,
            set(json.loads(hosts.from_first("validated", validated))),
            began=began,
            allow_data_change=allow_config_change,
        )
        if hosts.is_first:
            save_config(workdir, config)
        return session.train(start)


def for_devices(config: Config, devices: list[jax.Device]) -> Config:
    """The config with the rule for these devices applied, which is said."""
    config, rule = with_mesh_rules(config, devices[0].device_kind, len(devices))
    if rule:
        print(f"config.mesh_rules: {rule!r} applies")
    return config


def _open_log(workdir: Path, config: Config, hosts: Hosts) -> Writer:
    return make_writers(workdir, config.logging) if hosts.is_first else NO_WRITER


def report_failed_save(log: Writer, step: int, reason: str) -> None:
    """Says that a checkpoint could not be saved yet."""
    print(f"{reason}; it is tried again")
    log.write(step, "save_failed", {"reason": reason})


def report_damage(log: Writer, bad: SetAside) -> None:
    """Says which checkpoint was found damaged and where it is now."""
    print(f"checkpoint {bad.step} was set aside as {bad.moved_to}: {bad.reason}")
    values = {"bad_step": bad.step, "reason": bad.reason, "moved_to": str(bad.moved_to)}
    log.write(bad.step, "fallback", values)


def describe(config: Config, dataset: Dataset, sharding: Sharding) -> str:
    """What is about to be trained: mesh, rows, parameters, who updates them, and what they read.

    Raises:
      UserError: more epochs of a source than its `max_epochs`.
    """
    abstract, shardings = state_shardings(config, sharding)
    machine = make_machine(config.model, sharding)
    return "\n".join(
        [
            f"mesh {mesh_shape(sharding)} of {machine.device}, rules {config.mesh.rules}",
            describe_rows(dataset.train),
            parameter_table(abstract.params, shardings.params),
            describe_optimizer(config.optimizer, abstract.params),
            describe_reading(dataset.train, config, count_params(abstract.params)),
            machine.describe(),
        ]
    )


if __name__ == "__main__":
    cli.run(main, define_flags, restarts=True)
