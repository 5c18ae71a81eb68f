"""What a client may send: names, ids and counts within their bounds."""

import re
from functools import lru_cache
from typing import Any

from wattd.v1 import marks_pb2

NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_CLIENT_ID = re.compile(r"[0-9a-f]{32}")
_BOOT_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_GPU_UUID = re.compile(r"[A-Za-z0-9_.:/-]{1,96}")
_GPU_SOURCES = frozenset({"torch", "cuda_visible_devices", "unknown"})

_GPU_REASONS = frozenset(
    {"captured", "crowded", "failed", "late", "no_anchor", "out_of_order", "several_devices"}
)

_MOST_LETTERS = 64
_MOST_GPUS_A_RANK = 64
_MOST_TOKENS = 1 << 53
_MOST_GPU_ERROR_NANO = 1_000_000_000


class RefusedError(Exception):
    """A mark, a request or a result cannot be taken; the text says why in one line."""


def is_name(name: str) -> bool:
    """Whether a name has the allowed letters and length."""
    return len(name) <= _MOST_LETTERS and _has_letters_of_a_name(name)


@lru_cache(maxsize=4096)
def _has_letters_of_a_name(name: str) -> bool:
    return NAME.fullmatch(name) is not None


def check_sender(client_id: str, boot_id: str) -> None:
    """Check who sends.

    Raises:
        RefusedError: The client id or the boot id is malformed.
    """
    if not _CLIENT_ID.fullmatch(client_id):
        raise RefusedError("client_id must be 32 lower-case hexadecimal digits")
    if not _BOOT_ID.fullmatch(boot_id):
        raise RefusedError("boot_id must be that of /proc/sys/kernel/random/boot_id")


def checked_gpus(mark: marks_pb2.RunMark) -> dict[str, Any]:
    """The keys that say which GPUs a rank uses.

    Raises:
        RefusedError: They are no UUIDs, or too many.
    """
    if len(mark.gpu_uuids) > _MOST_GPUS_A_RANK:
        raise RefusedError(f"run {mark.run_id}: more than {_MOST_GPUS_A_RANK} GPUs on one rank")
    for uuid in mark.gpu_uuids:
        if not _GPU_UUID.fullmatch(uuid):
            raise RefusedError(f"run {mark.run_id}: {shown(uuid)} is no UUID of a GPU")
    source = mark.gpu_source or "unknown"
    if source not in _GPU_SOURCES:
        raise RefusedError(f"run {mark.run_id}: gpu_source is one of {', '.join(sorted(_GPU_SOURCES))}")
    return {**({"gpu_uuids": list(mark.gpu_uuids)} if mark.gpu_uuids else {}), "gpu_source": source}


def checked_gpu_edges(mark: marks_pb2.PhaseMark, latest_nano: int) -> dict[str, Any]:
    """The keys that say when a GPU reached the edges of a phase, or why that is not known.

    Args:
        mark: The end of a phase.
        latest_nano: What lies after this is in the future.

    Raises:
        RefusedError: The times are not in order, or in the future, or their error makes them worthless.
    """
    if not mark.gpu_error_nano:
        if mark.gpu_reason not in _GPU_REASONS:
            raise RefusedError(f"phase {mark.name}: gpu_reason is one of {', '.join(sorted(_GPU_REASONS))}")
        return {"gpu_reason": mark.gpu_reason}
    begin, end = mark.gpu_begin_monotonic_nano, mark.gpu_end_monotonic_nano
    if not 0 < begin <= end <= latest_nano:
        raise RefusedError(f"phase {mark.name}: its times on the GPU are not in order, or in the future")
    if mark.gpu_error_nano > _MOST_GPU_ERROR_NANO:
        raise RefusedError(f"phase {mark.name}: gpu_error_nano must be at most a second")
    return {
        "gpu_begin_monotonic_nano": begin,
        "gpu_end_monotonic_nano": end,
        "gpu_error_nano": mark.gpu_error_nano,
    }


def checked_count(number: int, what: str) -> int:
    """A count that JSON readers keep exact.

    Raises:
        RefusedError: It is negative or too large.
    """
    if not 0 <= number <= _MOST_TOKENS:
        raise RefusedError(f"{what} must be from 0 to 2^53")
    return number


def shown(text: str) -> str:
    """A client's text, short and harmless enough for a message."""
    return repr(text[:64])
