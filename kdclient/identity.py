"""Who this process is: its run, its rank, its GPUs, and where the daemon is."""

import os
import sys
from collections import defaultdict
from itertools import count
from typing import Any, NamedTuple

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_STORE_SECONDS = 10.0
_ordinals: defaultdict[str, "count[int]"] = defaultdict(count)


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
    with open(_BOOT_ID, encoding="ascii") as file:  # noqa: PTH123 - pathlib is slow to import
        return file.read().strip()


def sockets() -> list[str]:
    """Where a daemon may listen: WATTD_SOCKET alone if it is set, else the user's, then the node's."""
    named = os.environ.get("WATTD_SOCKET")
    if named:
        return [named]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    own = [f"{runtime}/wattd.sock"] if runtime and os.geteuid() != 0 else []
    return [*own, "/run/wattd/wattd.sock"]


def spool() -> str:
    """Where marks wait for a daemon: WATTD_SPOOL, else a folder of the user's state."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111 - pathlib is slow to import
    return os.environ.get("WATTD_SPOOL") or f"{state}/wattd/spool"


def place() -> Place:
    """Rank, local rank and world size as torchrun or srun say them; (0, 0, 1) for a process alone.

    A batch script has SLURM_NTASKS too, without being one of many tasks: only the step's own number
    of tasks counts.
    """
    for names in (
        ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
        ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),
    ):
        try:
            found = Place(*(int(os.environ[name]) for name in names))
        except (KeyError, ValueError):
            continue
        if 0 <= found.local_rank <= found.rank < found.world_size:
            return found
    return Place(0, 0, 1)


def restarted() -> bool:
    """Whether Slurm has started this job before: what was begun then goes on now."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") not in {"", "0"}


def run_id(name: str, *, given: str | None = None, resume: bool = False) -> str:
    """The id that all ranks of a run share.

    Args:
        name: Name of the run; all ranks begin their runs of one name in the same order.
        given: The id that the program asked for; by default WATTD_RUN_ID.
        resume: The run of that id goes on.
    """
    given = given or os.environ.get("WATTD_RUN_ID")
    ordinal = next(_ordinals[given or name])
    if given:
        # A second run under the id of the first would be taken for it.
        return given if resume or not ordinal else _digest(given, ordinal)
    distributed = _distributed()
    if distributed is not None:
        shared = _from_rank_zero(distributed, f"wattd/{name}/{ordinal}")
        if shared:
            return shared
    elif place().world_size == 1:
        return random_id()
    return _digest(_launch(), name, ordinal)


def random_id() -> str:
    """32 random hexadecimal digits."""
    return os.urandom(16).hex()


def _digest(*parts: object) -> str:
    import hashlib  # noqa: PLC0415 - it loads OpenSSL, and few processes come here

    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def _distributed() -> Any:
    """torch.distributed where the program has initialised it; it is never imported for this."""
    module = sys.modules.get("torch.distributed")
    if module is None or not module.is_available() or not module.is_initialized():
        return None
    return module if module.get_world_size() > 1 else None


def _from_rank_zero(distributed: Any, key: str) -> str:
    """Rank 0's random id, through the store in which the ranks met.

    A collective would do the same, but would hang a program that begins a run on some ranks only,
    and NCCL's would start CUDA.

    Returns:
        The id, or nothing where rank 0 has begun no such run within ten seconds.
    """
    from datetime import timedelta  # noqa: PLC0415 - few processes come here

    try:
        store = distributed.distributed_c10d._get_default_store()  # noqa: SLF001 - no public way to it
        if distributed.get_rank() == 0:
            store.set(key, random_id())
        store.wait([key], timedelta(seconds=_STORE_SECONDS))
        return str(store.get(key).decode())
    except (AttributeError, RuntimeError, ValueError):
        return ""


def _launch() -> str:
    """What the processes of one launch have in common, and other launches have not."""
    elastic = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if elastic != "none":  # the default of torchrun, the same for everybody
        return elastic
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "MASTER_ADDR", "MASTER_PORT")
    return ":".join(os.environ.get(name, "") for name in names)


def gpus() -> tuple[list[str], str]:
    """UUIDs of the GPUs this process computes on, and how they are known.

    CUDA is never started for this. An index of CUDA_VISIBLE_DEVICES is not resolved: a container's
    GPU 0 is not the node's.

    Returns:
        UUIDs and `torch`, `cuda_visible_devices` or `unknown`.
    """
    used = _gpus_in_use()
    if used:
        return used, "torch"
    visible = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if not all(word.startswith(("GPU-", "MIG-")) for word in visible):
        return [], "unknown"
    here = place()
    if here.world_size > 1 and here.local_rank < len(visible):
        visible = [visible[here.local_rank]]  # each rank sees all, and takes its own
    return visible, "cuda_visible_devices"


def _gpus_in_use() -> list[str]:
    """Where torch holds memory: the current device says nothing, being a thread's own."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    try:
        if cuda is None or not cuda.is_initialized():
            return []
        numbers = [number for number in range(cuda.device_count()) if cuda.memory_reserved(number)]
        names = [str(cuda.get_device_properties(number).uuid) for number in numbers]
    except (AttributeError, RuntimeError):  # still being imported, or the device has failed
        return []
    return [name if name.startswith(("GPU-", "MIG-")) else f"GPU-{name}" for name in names]
