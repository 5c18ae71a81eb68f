"""What the two processes ask of the kernel: punctuality for one, powerlessness for the other."""

import ctypes
import os
import struct

_PR_SET_TIMERSLACK = 29
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_POSSIBLE_CAPABILITY = 63
CLOCK_PRIORITY, HELPER_PRIORITY = 10, 9
"""Real-time priorities: of the thread that holds the clock, and of those that share its interpreter.

A helper that is preempted while it holds the interpreter would keep the clock waiting, whatever the
clock's own priority: so the helpers are real-time too, for the millisecond a second they need."""

_libc = ctypes.CDLL(None, use_errno=True)


def be_punctual(priority: int = CLOCK_PRIORITY) -> str:
    """Ask for real-time scheduling of the calling thread, else for a better nice value.

    Children are not real-time: SCHED_RESET_ON_FORK.

    Args:
        priority: Real-time priority, CLOCK_PRIORITY or HELPER_PRIORITY.

    Returns:
        What was granted: `SCHED_FIFO`, `nice` or `default`.
    """
    _libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except OSError:
        pass  # CAP_SYS_NICE is missing
    else:
        return "SCHED_FIFO"
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    except OSError:
        return "default"
    return "nice"


def give_up_capabilities() -> bool:
    """Drop every capability of this process for good; it stays who it is.

    Returns:
        Whether there was something to give up.

    Raises:
        OSError: The kernel refused, which it has no reason to.
    """
    had = _effective_capabilities() != 0
    for capability in range(_LAST_POSSIBLE_CAPABILITY + 1):
        _libc.prctl(
            _PR_CAPBSET_DROP, capability, 0, 0, 0
        )  # refused without the right to: nothing to drop then
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, bytes(24)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")
    return had


def _effective_capabilities() -> int:
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 - a file of the kernel's
        for line in status:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0
