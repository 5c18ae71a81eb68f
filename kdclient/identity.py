"""Who this process is: its run, its rank, its GPUs, and where the daemon is."""

import hashlib
import os
import sys
import uuid
from pathlib import Path
from typing import Any, NamedTuple

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Place(NamedTuple):
    """A process among those of its launch.

    Attributes:
        rank: Its number, from 0.
        local_rank: Its number on this node, from 0.
        world_size: How many there are.
    """

    rank: int
    local_rank: int
    world_size: int


def boot_id() -> str:
    """This machine's boot id, without which monotonic times mean nothing."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


def sockets() -> list[str]:
    """Where a daemon may listen: WATTD_SOCKET alone if it is set, else the user's, else the node's."""
    named = os.environ.get("WATTD_SOCKET")
    if named:
        return [named]
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/wattd-{os.geteuid()}"  # noqa: S108 - looked at only
    own = [] if os.geteuid() == 0 else [f"{runtime}/wattd.sock"]
    return [*own, "/run/wattd/wattd.sock"]


def place() -> Place:
    """Rank, local rank and world size as torchrun or srun say them; (0, 0, 1) for a process alone."""
    for rank, local_rank, world_size in (
        ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
        ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
    ):
        try:
            found = Place(*(int(os.environ[name]) for name in (rank, local_rank, world_size)))
        except (KeyError, ValueError):
            continue
        if 0 <= found.local_rank <= found.rank < found.world_size:
            return found
    return Place(0, 0, 1)


def run_id(name: str, ordinal: int) -> str:
    """The id that all ranks of a run share.

    Args:
        name: Name of the run.
        ordinal: How many runs this process began before.
    """
    given = os.environ.get("WATTD_RUN_ID")
    if given:
        return given
    distributed = _distributed()
    if distributed is not None:
        shared = [uuid.uuid4().hex]
        distributed.broadcast_object_list(shared, src=0)
        return shared[0]
    if place().world_size == 1:
        return uuid.uuid4().hex
    return hashlib.sha256(f"{_launch()}\n{name}\n{ordinal}".encode()).hexdigest()[:32]


def _distributed() -> Any:
    """torch.distributed where the program has initialised it; it is never imported for this."""
    module = sys.modules.get("torch.distributed")
    if module is None or not module.is_available() or not module.is_initialized():
        return None
    return module if module.get_world_size() > 1 else None


def _launch() -> str:
    """What the processes of one launch have in common, and other launches have not."""
    elastic = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if elastic != "none":  # the default of torchrun, the same for everybody
        return elastic
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "MASTER_ADDR", "MASTER_PORT")
    return ":".join(os.environ.get(name, "") for name in names)


def gpus(local_rank: int) -> tuple[list[str], str]:
    """UUIDs of the GPUs this process computes on, and how they are known.

    CUDA is never started for this. An index is never resolved here: a container's GPU 0 is not the
    node's.

    Returns:
        UUIDs and `torch`, `cuda_visible_devices` or `unknown`.
    """
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is not None and cuda.is_available() and cuda.is_initialized():
        return [_with_prefix(str(cuda.get_device_properties(cuda.current_device()).uuid))], "torch"
    visible = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    uuids = [word for word in visible if word.startswith(("GPU-", "MIG-"))]
    if uuids and len(uuids) == len(visible):
        # With one visible GPU a rank, the usual launch, local_rank picks the rank's own.
        return ([uuids[local_rank]] if place().world_size > 1 and local_rank < len(uuids) else uuids), (
            "cuda_visible_devices"
        )
    return [], "unknown"


def _with_prefix(text: str) -> str:
    return text if text.startswith("GPU-") else f"GPU-{text}"
