"""Which process of how many this is."""

import pytest

from glm_jax.errors import UserError
from glm_jax.parallel import place as places
from glm_jax.parallel.place import Place, find_place

TOLD = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}


def find(flags=(None, None, None), **environment: str) -> Place | None:
    return find_place(*flags, timeout=1.0, environment={"JAX_PLATFORMS": "cpu"} | environment)


def test_nobody_says_anything():
    assert find() is None
    assert find(JAX_COORDINATOR_ADDRESS="a:1") is None


def test_variables_and_flags_which_go_first():
    assert find(**TOLD) == Place("a:1", 4, 2)
    assert find((None, None, 3), **TOLD) == Place("a:1", 4, 3)
    assert find(("[::1]:7", 2, 0)) == Place("[::1]:7", 2, 0)
    assert find(("[::1]:7", 2, 0)).address == ("::1", 7)


def test_one_process_may_be_joined_too():
    assert find((None, 1, None)) is None
    assert find(("a:1", 1, 0)) == Place("a:1", 1, 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((None, 2, 0), r"needs --coordinator_address \(JAX_COORDINATOR_ADDRESS\) too"),
        (("a:1", 2, None), r"needs --process_id \(JAX_PROCESS_ID\) too"),
        ((None, None, 1), "needs --coordinator_address .* and --num_processes .* too"),
        (("a:1", 2, 2), "--process_id 2 is none of --num_processes 2"),
        (("a", 2, 1), "must be HOST:PORT, got 'a'"),
        (("a:99999", 2, 1), "must be HOST:PORT, got 'a:99999'"),
    ],
)
def test_what_does_not_fit_together(flags, message):
    with pytest.raises(UserError, match=message):
        find(flags)


def test_a_variable_that_is_no_number():
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES must be a number, got 'two'"):
        find(**TOLD | {"JAX_NUM_PROCESSES": "two"})


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


@pytest.fixture
def surroundings(monkeypatch):
    """Sets the variables that JAX's own detection reads, of a machine that is no Cloud TPU VM."""

    def surround(**variables: str) -> Place | None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return find(**variables)

    monkeypatch.setattr(places, "running_in_cloud_tpu_vm", False)
    return surround


def test_slurm(surroundings):
    assert surroundings(**SLURM) == Place(f"node003:{7 + 65535 - 2**12 + 1}", 8, 5, (1,))


def test_a_job_of_slurm_with_one_task_is_alone(surroundings):
    assert surroundings(**SLURM | {"SLURM_NTASKS": "1"}) is None


def test_the_shell_of_an_allocation_is_alone(surroundings):
    """No srun started this process, though the job has tasks."""
    assert surroundings(SLURM_JOB_ID="7", SLURM_NTASKS="8") is None


def test_open_mpi(surroundings):
    place = surroundings(
        OMPI_MCA_orte_hnp_uri="1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
        OMPI_COMM_WORLD_SIZE="2",
        OMPI_COMM_WORLD_RANK="1",
        OMPI_COMM_WORLD_LOCAL_RANK="0",
    )
    assert (place.count, place.index, place.local_devices) == (2, 1, (0,))
    assert place.coordinator.startswith("10.96.0.1:")


def test_gke(surroundings, monkeypatch):
    """As a job set on TPUs sees it, of which JAX asks only the variables."""
    from jax._src.clusters import cloud_tpu_cluster, cluster

    monkeypatch.setattr(places, "running_in_cloud_tpu_vm", True)
    for module in (cloud_tpu_cluster, cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
    variables = {"TPU_WORKER_HOSTNAMES": "localhost,host-1", "TPU_WORKER_ID": "1"}
    variables |= {"MEGASCALE_COORDINATOR_ADDRESS": "localhost", "MEGASCALE_NUM_SLICES": "2"}
    variables |= {"MEGASCALE_SLICE_ID": "1", "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": ""}
    assert surroundings(**variables) == Place("localhost:8482", 4, 3)
