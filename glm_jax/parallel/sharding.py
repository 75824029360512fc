"""Which logical axis lies on which mesh axis, for parameters and for activations."""

import contextlib
import contextvars
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from glm_jax.batch import HostShare
from glm_jax.config import MeshConfig
from glm_jax.errors import UserError
from glm_jax.parallel.mesh import AXES, make_mesh

BATCH_AXES = ("data", "fsdp")
SEQUENCE_AXIS = "context"
TOKEN_AXES = (*BATCH_AXES, SEQUENCE_AXIS)
WEIGHT_AXES = ("fsdp", SEQUENCE_AXIS)
"""What splits the width of parameters: devices that share a row need not hold copies of them."""

_MODEL = dict.fromkeys(("heads", "kv_heads", "mlp", "vocab"), ("model",))

PRESETS = {
    "dp": {},
    "fsdp": {"embed": WEIGHT_AXES},
    "model": _MODEL,
    "fsdp_model": {"embed": WEIGHT_AXES, **_MODEL},
}
"""Mesh axes of each logical axis of a parameter; an axis that is not named is replicated."""

PARAMETER_AXES = ("layers", "embed", "heads", "kv_heads", "head_dim", "mlp", "vocab", "positions")

_ACTIVATIONS = {
    "batch": BATCH_AXES,
    "sequence": (SEQUENCE_AXIS,),
    # Norms, dropout and residuals are split over `model` too: the all-reduce after a projection
    # becomes a reduce-scatter and an all-gather (Korthikanti et al. 2022, arXiv 2205.05198).
    "norm_sequence": (SEQUENCE_AXIS, "model"),
    **_MODEL,
}


class WeightLayout(NamedTuple):
    """A mesh and the mesh axes over which each axis of a parameter is split."""

    mesh: Mesh
    split: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Sharding:
    """A mesh with the rules that lay arrays out on it."""

    mesh: Mesh
    params: dict[str, tuple[str, ...]]

    @property
    def batch_size(self) -> int:
        """Number of devices that hold different rows."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    @functools.cached_property
    def host_share(self) -> HostShare:
        """The parts of a batch that the devices of this process hold."""
        mine = [device.process_index == jax.process_index() for device in self.mesh.devices.flat]
        held = np.reshape(mine, (self.batch_size, -1)).any(axis=1)
        return HostShare(tuple(np.flatnonzero(held).tolist()), self.batch_size)

    def place(self, batch):
        """Moves the rows of `host_share` (numpy arrays [B', T]) onto the devices: arrays [B, T]."""
        if jax.process_count() == 1:
            return jax.make_array_from_process_local_data(self.slots, batch)
        return jax.tree.map(self._place_part, batch)

    def _place_part(self, rows: np.ndarray) -> jax.Array:
        share = self.host_share
        size = len(rows) // len(share.parts)  # of a part

        def held(index: tuple[slice, ...]) -> np.ndarray:
            first = size * share.parts.index((index[0].start or 0) // size)
            return rows[first : first + size, *index[1:]]

        shape = (size * share.count, *rows.shape[1:])
        return jax.make_array_from_callback(shape, self.slots, held)

    def place_rows(self, rows):
        """Lays arrays [B, ...] out that every process has, whose rows stay whole."""
        if jax.process_count() == 1:
            return jax.make_array_from_process_local_data(self.rows, rows)
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, self.rows, x.__getitem__), rows
        )

    def fetch(self, arrays):
        """The values of arrays on the mesh, as numpy arrays on every host."""
        if jax.process_count() > 1:
            arrays = jax.jit(lambda x: x, out_shardings=self.replicated)(arrays)
        return jax.device_get(arrays)

    @property
    def rows(self) -> NamedSharding:
        """Of arrays [B, ...] whose rows are whole on each device."""
        return NamedSharding(self.mesh, P(BATCH_AXES))

    @property
    def slots(self) -> NamedSharding:
        """Of arrays [B, T, ...], the fields of a batch."""
        return NamedSharding(self.mesh, P(BATCH_AXES, SEQUENCE_AXIS))

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, P())

    def tree(self, shapes: dict, axes: dict) -> dict:
        """Shardings of a tree of parameters, from the two trees of `model.glm.abstract_params`.

        Raises:
          UserError: two axes of a parameter share a mesh axis, or a size is not divisible by its
            mesh axis; the message has the parameter's name and both numbers.
        """
        return jax.tree_util.tree_map_with_path(
            lambda path, shape, names: NamedSharding(
                self.mesh, self._spec(param_name(path), shape.shape, names)
            ),
            shapes,
            axes,
        )

    def _spec(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> P:
        spec = self.split(shape, axes)
        used = list(itertools.chain.from_iterable(spec))
        if len(used) != len(set(used)):
            raise UserError(f"parameter {name}: axes {axes} would share a mesh axis in {spec}")
        for size, mesh_axes in zip(shape, spec, strict=True):
            if size % _num_parts(self.mesh, mesh_axes):
                sizes = " x ".join(f"{axis}={self.mesh.shape[axis]}" for axis in mesh_axes)
                raise UserError(
                    f"parameter {name}: dimension {size} is not divisible by mesh axis {sizes}"
                )
        return _partition_spec(self.mesh, spec)

    def split(self, shape: Sequence[int], axes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """The mesh axes over which each axis of a parameter is split, unchecked."""
        sizes = zip(axes, shape, strict=True)
        return tuple(_split(self.mesh, self.params, axis, size) for axis, size in sizes)

    @contextlib.contextmanager
    def activate(self) -> Iterator[None]:
        """Makes this the layout of what is traced inside: `constrain` and the kernels use it."""
        token = _ACTIVE.set(self)
        try:
            with jax.set_mesh(self.mesh):
                yield
        finally:
            _ACTIVE.reset(token)


_ACTIVE: contextvars.ContextVar[Sharding | None] = contextvars.ContextVar("sharding", default=None)


def make_sharding(config: MeshConfig, devices: list[jax.Device] | None = None) -> Sharding:
    """The mesh and the rules that a config names.

    Raises:
      UserError: unknown preset, unknown axis in an override, or sizes that do not fit.
    """
    rules = rules_of(config)
    return Sharding(make_mesh(config, devices), rules)


def rules_of(config: MeshConfig) -> dict[str, tuple[str, ...]]:
    """Mesh axes of each logical axis of a parameter: the preset with its overrides.

    Raises:
      UserError: unknown preset, or unknown axis in an override.
    """
    if config.rules not in PRESETS:
        raise UserError(
            f"config.mesh.rules must be one of {', '.join(PRESETS)}, got {config.rules!r}"
        )
    for axis, mesh_axis in config.overrides.items():
        if axis not in PARAMETER_AXES:
            raise UserError(
                f"config.mesh.overrides has no axis {axis!r}; known: {', '.join(PARAMETER_AXES)}"
            )
        if mesh_axis not in ("", *AXES):
            raise UserError(
                f"config.mesh.overrides.{axis} must be one of {', '.join(AXES)} or empty, "
                f"got {mesh_axis!r}"
            )
    overrides = {axis: (name,) if name else () for axis, name in config.overrides.items()}
    return PRESETS[config.rules] | overrides


def parameter_table(shapes: dict, shardings: dict) -> str:
    """Name, shape, layout and bytes per device of every parameter, and the totals."""
    lines = [f"{'parameter':42} {'shape':>20} {'layout':>26} {'bytes/device':>14}"]
    total = per_device = 0
    for (path, shape), sharding in zip(
        jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(shardings), strict=True
    ):
        layout = ", ".join(map(_axis_name, sharding.spec))
        held = math.prod(sharding.shard_shape(shape.shape)) * shape.dtype.itemsize
        dims = " x ".join(map(str, shape.shape))
        lines.append(f"{param_name(path):42} {dims:>20} {layout:>26} {held:14,}")
        total += math.prod(shape.shape)
        per_device += held
    lines.append(f"{f'{total:,} parameters':42} {'':>20} {'':>26} {per_device:14,}")
    return "\n".join(lines)


def active_mesh() -> Mesh | None:
    """The mesh of the code that is being traced; None outside `Sharding.activate`."""
    sharding = _ACTIVE.get()
    return None if sharding is None else sharding.mesh


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Lays an activation with these logical axes out; the identity outside `Sharding.activate`.

    A sequence that does not divide over its mesh axes, as in decoding, is left whole.
    """
    mesh = active_mesh()
    if mesh is None or mesh.size == 1:
        return x
    sizes = zip(axes, x.shape, strict=True)
    spec = [_split(mesh, _ACTIVATIONS, axis, size) for axis, size in sizes]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, _partition_spec(mesh, spec)))


def active_layout(shape: Sequence[int], axes: Sequence[str]) -> WeightLayout | None:
    """Where the code that is being traced finds a parameter; None if it is on one device."""
    sharding = _ACTIVE.get()
    if sharding is None or sharding.mesh.size == 1:
        return None
    return WeightLayout(sharding.mesh, sharding.split(shape, axes))


def _split(mesh: Mesh, rules: dict[str, tuple[str, ...]], axis: str, size: int) -> tuple[str, ...]:
    """The mesh axes over which a logical axis of this size is split."""
    mesh_axes = rules.get(axis, ())
    parts = _num_parts(mesh, mesh_axes)
    if axis == "norm_sequence" and size % parts:
        return _split(mesh, rules, "sequence", size)
    # Every device has all key heads where there are fewer of them than devices (GQA).
    repeats = axis == "kv_heads" and parts > size and parts % size == 0
    stays_whole = axis == "sequence" and size % parts
    return () if repeats or stays_whole else mesh_axes


def _num_parts(mesh: Mesh, axes: Sequence[str]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def _partition_spec(mesh: Mesh, spec: Sequence[tuple[str, ...]]) -> P:
    """The spec without the axes of `WEIGHT_AXES` and the like that split nothing."""
    return P(*(_shortest(mesh, axes) for axes in spec))


def _shortest(mesh: Mesh, axes: tuple[str, ...]) -> str | tuple[str, ...] | None:
    if len(axes) < 2:
        return axes[0] if axes else None
    split = tuple(axis for axis in axes if mesh.shape[axis] > 1)
    return split if len(split) > 1 else (split or axes)[0]


def _axis_name(axes: str | tuple[str, ...] | None) -> str:
    if axes is None:
        return "-"
    return axes if isinstance(axes, str) else " x ".join(axes)


def param_name(path) -> str:
    """The name of a leaf: its keys joined by '/'."""
    return "/".join(str(key.key) for key in path)
