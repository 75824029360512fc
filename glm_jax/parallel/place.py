"""Which process of how many this is: told by flags or variables, or found out from the cluster."""

import dataclasses
import os
from collections.abc import Mapping

from jax._src import clusters  # jax.distributed.initialize would ask it too, but aborts on failure
from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm

from glm_jax.errors import RestartError, UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""What stands for --coordinator_address, --num_processes and --process_id."""


@dataclasses.dataclass(frozen=True)
class Place:
    """A process among those of a run.

    Attributes:
      coordinator: HOST:PORT at which process 0 listens.
      local_devices: the numbers of the accelerators that are this process's; None for all.
    """

    coordinator: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def find_place(
    coordinator: str | None,
    count: int | None,
    index: int | None,
    *,
    timeout: float,
    environment: Mapping[str, str] = os.environ,
) -> Place | None:
    """The place of this process; None where it is alone.

    The arguments go first, for each of which one of `VARIABLES` may stand; then what Slurm, Open
    MPI, GKE or a Cloud TPU VM say.

    Args:
      timeout: seconds to wait for a cluster's metadata.

    Raises:
      UserError: only some of the three are given, or they do not fit together.
      RestartError: the cluster does not say.
    """
    variables = [environment.get(name) or None for name in VARIABLES]
    coordinator = coordinator or variables[0]
    count = _number(VARIABLES[1], variables[1]) if count is None else count
    index = _number(VARIABLES[2], variables[2]) if index is None else index
    if count is not None or index is not None:
        return _told(coordinator, count, index)
    if not _has_peers(environment):
        return None
    return _detected(coordinator, timeout)


def _number(name: str, value: str | None) -> int | None:
    if value is None or value.isdecimal():
        return value and int(value)
    raise UserError(f"{name} must be a number, got {value!r}")


def _told(coordinator: str | None, count: int | None, index: int | None) -> Place | None:
    if count == 1 and not index and coordinator is None:
        return None
    given = zip(VARIABLES, (coordinator, count, index), strict=True)
    if missing := [name for name, value in given if value is None]:
        flags = [f"--{name.removeprefix('JAX_').lower()} ({name})" for name in missing]
        raise UserError(f"of several processes each needs {' and '.join(flags)} too")
    if count < 1 or not 0 <= index < count:
        raise UserError(f"--process_id {index} is none of --num_processes {count}")
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65_536):
        raise UserError(f"--coordinator_address must be HOST:PORT, got {coordinator!r}")
    return Place(coordinator, count, index)


def _has_peers(environment: Mapping[str, str]) -> bool:
    """Whether the surroundings speak of several processes; a Cloud TPU VM has to be asked."""
    tasks = environment.get("SLURM_NTASKS", "") if "SLURM_STEP_NODELIST" in environment else ""
    counts = (tasks, environment.get("OMPI_COMM_WORLD_SIZE", ""))
    if any(count.isdecimal() and int(count) > 1 for count in counts):
        return True
    if environment.get("JAX_PLATFORMS", "") == "cpu" or not running_in_cloud_tpu_vm:
        return False
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if workers is not None:
        return "," in workers or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1
    return environment.get("TPU_SKIP_MDS_QUERY") is None


def _detected(coordinator: str | None, timeout: float) -> Place | None:
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, None, None, None, None, max(1, round(timeout))
        )
    except Exception as error:  # whatever metadata servers and variables bring
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RestartError(f"the cluster does not say who its hosts are: {reason}") from error
    coordinator, count, index, devices = found
    if count is None or count == 1:
        return None
    return Place(coordinator, count, index, devices and tuple(devices))
