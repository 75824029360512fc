"""Says what a run takes before devices are paid for.

    python -m glm_jax.fit --config=configs/X.py[:variant] --topology=v5e:8x8 [--num_slices=N]
    python -m glm_jax.fit --config=configs/X.py[:variant] --topology=v5e:8x8 --search

The real training step is compiled for devices that need not be there, without data; nothing runs.
Memory and traffic are the compiler's, the times are bounds by arithmetic. --search tries meshes,
accumulation and rematerialisation, and ranks what fits.
"""

import functools

import jax
from absl import flags

from glm_jax import cli
from glm_jax.config import Config, with_vocab_size
from glm_jax.errors import UserError
from glm_jax.mesh_rules import with_mesh_rules
from glm_jax.parallel.device_kinds import device_kind
from glm_jax.parallel.sharding import make_sharding
from glm_jax.planning.compiled_step import DoesNotFit
from glm_jax.planning.nearest import nearest_that_fits
from glm_jax.planning.plan import largest, parts_of, plan_parts
from glm_jax.planning.plan_text import describe_mesh, describe_part, describe_run, describe_shape
from glm_jax.planning.search import search
from glm_jax.planning.search_text import COLUMNS, describe_ranking, describe_tried
from glm_jax.planning.topologies import described_devices
from glm_jax.training.evaluation import check_batches

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_config_flag()
    flags.DEFINE_string("topology", None, "Devices, such as v5e:4x4, v5p:4x4x4, h200:8 or cpu:4.")
    flags.DEFINE_integer("num_slices", 1, "Slices of TPUs.", 1)
    flags.DEFINE_integer("vocab_size", 0, "Pieces of the tokenizer, where the config is 0.", 0)
    flags.DEFINE_bool("search", False, "Rank meshes, accumulation and remat by their least time.")
    flags.DEFINE_integer("max_compiles", 12, "Steps that --search compiles at most.", 1)


def main() -> None:
    config = with_vocabulary(cli.load_config(), FLAGS.vocab_size)
    topology = cli.required("topology")
    jax.config.update("jax_platforms", "cpu")  # devices that this machine has are not opened
    jax.config.update("jax_enable_compilation_cache", False)  # how long it takes is a figure
    devices = described_devices(topology, FLAGS.num_slices)
    config, rule = with_mesh_rules(config, devices[0].device_kind, len(devices))
    if rule:
        print(f"config.mesh_rules: {rule!r} applies")
    if FLAGS.search:
        find(config, devices, FLAGS.num_slices, FLAGS.max_compiles)
    else:
        fit(config, devices, FLAGS.num_slices)


def with_vocabulary(config: Config, tokenizer_size: int) -> Config:
    """The config with its embedding rows known.

    Raises:
      UserError: neither it nor the flag says how many.
    """
    if not config.model.vocab_size and not tokenizer_size:
        raise UserError(
            "config.model.vocab_size is 0: --vocab_size=N says how many pieces the tokenizer has"
        )
    return with_vocab_size(config, tokenizer_size)


def fit(config: Config, devices: list[jax.Device], num_slices: int) -> None:
    """Prints what the config takes on the devices.

    Raises:
      UserError: its mesh does not multiply to them, or its batches or the memory that a step needs
        do not fit them: with the nearest that should.
    """
    sharding = make_sharding(config.mesh, devices)
    kind = device_kind(devices[0].device_kind)
    way_out = functools.partial(
        nearest_that_fits, config, tuple(sharding.mesh.shape.values()), num_slices, kind
    )
    try:
        check_batches(config, sharding)
    except UserError as error:
        raise UserError(f"{error}; {way_out()}") from error
    print(describe_mesh(config, sharding), flush=True)
    parts, plans = parts_of(config), []
    try:
        for part, plan in zip(parts, plan_parts(parts, devices), strict=True):
            plans.append(plan)
            print(describe_part(part, plan, len(devices)), flush=True)
    except DoesNotFit as error:
        raise UserError(f"{error}; {way_out(needed=error.needed)}") from error
    print(describe_run(config, parts, plans))


def find(config: Config, devices: list[jax.Device], num_slices: int, max_compiles: int) -> None:
    """Prints layouts of the run's largest steps as they are tried, and the best.

    Raises:
      UserError: none fits.
    """
    print(describe_shape(largest(parts_of(config))))
    print(COLUMNS)
    found = []
    for tried in search(config, devices, num_slices, max_compiles):
        found.append(tried)
        print(describe_tried(tried), flush=True)
    print(describe_ranking(found))


if __name__ == "__main__":
    cli.run(main, define_flags)
