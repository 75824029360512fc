"""Which logical axis lies on which mesh axis, for parameters and for activations."""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from glm_jax.config import MeshConfig
from glm_jax.errors import UserError
from glm_jax.parallel.mesh import AXES, make_mesh

_MODEL = dict.fromkeys(("heads", "kv_heads", "mlp", "vocab"), "model")

PRESETS = {
    "dp": {},
    "fsdp": {"embed": "fsdp"},
    "model": _MODEL,
    "fsdp_model": {"embed": "fsdp", **_MODEL},
}
"""Mesh axis of each logical axis of a parameter; an axis that is not named is replicated."""

PARAMETER_AXES = ("layers", "embed", "heads", "kv_heads", "head_dim", "mlp", "vocab", "positions")

BATCH_AXES = ("data", "fsdp")
_ACTIVATIONS = {"batch": BATCH_AXES, **_MODEL}


@dataclasses.dataclass(frozen=True)
class Sharding:
    """A mesh with the rules that lay arrays out on it."""

    mesh: Mesh
    params: dict[str, str]

    @property
    def batch_size(self) -> int:
        """Number of devices that hold different rows."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    def place(self, batch):
        """Moves this host's rows of a batch (a pytree of numpy arrays) onto the devices."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.batch, x), batch)

    @property
    def batch(self) -> NamedSharding:
        return NamedSharding(self.mesh, P(BATCH_AXES))

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
        spec = [self._mesh_axis(axis, size) for axis, size in zip(axes, shape, strict=True)]
        used = [axis for axis in spec if axis is not None]
        if len(used) != len(set(used)):
            raise UserError(f"parameter {name}: axes {axes} would share a mesh axis in {spec}")
        for size, mesh_axis in zip(shape, spec, strict=True):
            if mesh_axis is not None and size % self.mesh.shape[mesh_axis]:
                raise UserError(
                    f"parameter {name}: dimension {size} is not divisible by mesh axis "
                    f"{mesh_axis}={self.mesh.shape[mesh_axis]}"
                )
        return P(*spec)

    def _mesh_axis(self, axis: str, size: int) -> str | None:
        mesh_axis = self.params.get(axis)
        if axis == "kv_heads" and mesh_axis and _is_repeated(self.mesh, mesh_axis, size):
            return None
        return mesh_axis

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
    rules = PRESETS[config.rules] | config.overrides
    return Sharding(make_mesh(config, devices), {k: v for k, v in rules.items() if v})


def parameter_table(shapes: dict, shardings: dict) -> str:
    """Name, shape, layout and bytes per device of every parameter, and the totals."""
    lines = [f"{'parameter':42} {'shape':>20} {'layout':>26} {'bytes/device':>14}"]
    total = per_device = 0
    for (path, shape), sharding in zip(
        jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(shardings), strict=True
    ):
        layout = ", ".join("-" if axis is None else axis for axis in sharding.spec)
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
    """Lays an activation with these logical axes out; the identity outside `Sharding.activate`."""
    mesh = active_mesh()
    if mesh is None or mesh.size == 1:
        return x
    spec = [_ACTIVATIONS.get(axis) for axis in axes]
    for i, (axis, mesh_axis, size) in enumerate(zip(axes, spec, x.shape, strict=True)):
        if axis == "kv_heads" and _is_repeated(mesh, mesh_axis, size):
            spec[i] = None
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))


def _is_repeated(mesh: Mesh, mesh_axis: str, num_kv_heads: int) -> bool:
    """Whether every device has all key heads: there are fewer of them than devices (GQA)."""
    devices = mesh.shape[mesh_axis]
    return devices > num_kv_heads and devices % num_kv_heads == 0


def param_name(path) -> str:
    """The name of a leaf: its keys joined by '/'."""
    return "/".join(str(key.key) for key in path)
