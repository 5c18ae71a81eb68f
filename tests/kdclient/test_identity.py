"""Who a process is, as its launch says it."""

import os
import subprocess
import sys
import types
from typing import Any

import pytest

from kdclient import identity

_SHOW = "from kdclient import identity as i; print(i.run_id('r'), i.run_id('r'))"
_LAUNCH = [
    "WATTD_RUN_ID",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "SLURM_RESTART_COUNT",
    "CUDA_VISIBLE_DEVICES",
]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _LAUNCH:
        monkeypatch.delenv(name, raising=False)
    identity._ordinals.clear()


def _ids(**environment: Any) -> tuple[str, ...]:
    """Ids of the two runs of a process of its own."""
    clean = {name: value for name, value in os.environ.items() if name not in _LAUNCH}
    output = subprocess.run(
        [sys.executable, "-c", _SHOW],
        env={**clean, **{name: str(value) for name, value in environment.items()}},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return tuple(output.split())


def _torchrun(rank: int, port: int, run: str = "none") -> dict[str, Any]:
    return {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "node1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": run,
    }


def test_two_runs_of_a_process_differ() -> None:
    """A process alone gives each of its runs an id of its own."""
    first, second = _ids()
    assert first != second
    assert len(first) == len(second) == 32


def test_a_script_three_times_in_a_batch_step() -> None:
    """A batch script has a rank and a number of tasks without being one of many: three runs, three ids."""
    batch = {"SLURM_JOB_ID": 7, "SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_NTASKS": 4}
    assert len({_ids(**batch)[0] for _ in range(3)}) == 3


def test_ranks_of_a_torchrun_share_their_ids() -> None:
    """All ranks find the same id for the first run, and another for the second."""
    first, second = _ids(**_torchrun(0, 29500))
    assert (first, second) == _ids(**_torchrun(1, 29500))
    assert first != second


def test_two_torchruns_of_id_none_differ() -> None:
    """`none` is everybody's id: launches are told apart by where their ranks meet."""
    assert _ids(**_torchrun(0, 29500)) != _ids(**_torchrun(0, 29501))


def test_a_torchrun_with_an_id_goes_by_it() -> None:
    """An id given to torchrun holds over a change of the port."""
    assert _ids(**_torchrun(0, 29500, "abc")) == _ids(**_torchrun(1, 29501, "abc"))


def test_tasks_of_a_step_share_their_ids() -> None:
    """Tasks of srun are the ranks of one run; another step is another run."""
    tasks = [
        {"SLURM_JOB_ID": 7, "SLURM_STEP_ID": step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        | {"SLURM_STEP_NUM_TASKS": 2}
        for step, rank in ((0, 0), (0, 1), (1, 0))
    ]
    first, second, other = (_ids(**task) for task in tasks)
    assert first == second != other


def test_a_given_id_is_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """WATTD_RUN_ID names the first run; a second one gets another id unless it resumes the first."""
    monkeypatch.setenv("WATTD_RUN_ID", "mine")
    assert identity.run_id("r") == "mine"
    assert identity.run_id("r", resume=True) == "mine"
    assert identity.run_id("r") != "mine"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 0, 1)),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, (3, 1, 4)),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4"}, (3, 1, 4)),
        ({"RANK": "4", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, (0, 0, 1)),
        ({"RANK": "one", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, (0, 0, 1)),
        ({"RANK": "3"}, (0, 0, 1)),
    ],
)
def test_place(
    environment: dict[str, str], expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks are believed only where they fit together; else the process is alone."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert identity.place() == expected


def _torch(*, started: bool, reserved: tuple[int, ...]) -> Any:
    return types.SimpleNamespace(
        cuda=types.SimpleNamespace(
            is_initialized=lambda: started,
            device_count=lambda: len(reserved),
            memory_reserved=lambda number: reserved[number],
            get_device_properties=lambda number: types.SimpleNamespace(uuid=f"uuid-{number}"),
        )
    )


def test_gpus_are_those_torch_holds_memory_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the visible GPUs the rank's are those it computes on."""
    monkeypatch.setitem(sys.modules, "torch", _torch(started=True, reserved=(0, 512, 0)))
    assert identity.gpus() == (["GPU-uuid-1"], "torch")


def test_cuda_is_never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the program has started CUDA its GPUs are unknown."""
    monkeypatch.setitem(sys.modules, "torch", _torch(started=False, reserved=(512,)))
    assert identity.gpus() == ([], "unknown")


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("GPU-a", ["GPU-a"]),
        ("GPU-a, GPU-b", ["GPU-a", "GPU-b"]),
        ("0,1", []),
        ("GPU-a,1", []),
        ("", []),
    ],
)
def test_visible_devices(visible: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """UUIDs of CUDA_VISIBLE_DEVICES count; its indices mean nothing outside a container."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert identity.gpus() == (expected, "cuda_visible_devices" if expected else "unknown")


def test_a_rank_takes_its_own_of_the_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every rank sees all GPUs, each takes that of its local rank."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert identity.gpus() == (["GPU-b"], "cuda_visible_devices")


_RANK = """
import os, sys, torch.distributed as dist
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
from kdclient import identity
print(identity.run_id("r"), identity.run_id("r"))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_of_torch_distributed_share_rank_zeros_id(tmp_path: Any) -> None:
    """Where torch's ranks have met, rank 0's random ids are everybody's, and new at each launch."""
    launches = []
    for launch in range(2):
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", _RANK, str(tmp_path / f"meet{launch}"), str(rank)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        outputs = [rank.communicate(timeout=120)[0].split() for rank in ranks]
        assert outputs[0] == outputs[1]
        assert len(set(outputs[0])) == 2
        launches.append(outputs[0])
    assert launches[0] != launches[1]
