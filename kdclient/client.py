"""The connection of a process to its daemon: a queue, and a thread that empties it."""

import atexit
import contextlib
import os
import struct
import sys
import threading
import time
import weakref
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from kdclient import identity, stamps
from kdclient.phases import Item, Phase, Queue, Run, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdclient.sender import Sender
    from kdclient.stamps import Stamps

_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:-")
_MOST_LETTERS = 64
_MOST_NAMES = 10_000
_MOST_WARNINGS = 200
_Path = str | os.PathLike[str]
_clients: "weakref.WeakSet[Client]" = weakref.WeakSet()


class Client:
    """A process that marks phases; made by `connect`.

    Attributes:
        client_id: Random identity of this process; a forked child gets its own.
        sockets: Where a daemon may be.
        token_file: File with the job's token, or None.
        spool: Folder for marks that can't be delivered.
        queue: What was marked and not yet taken by the sender.
        append: Puts a phase on the queue.
        names: Names that were checked: as given -> as sent.
        strays: Ends without a begin, and begins after a begin.
        dropped: Phases that found the queue full, and were not told to the daemon yet.
        spool_only: A forked child of a process that used gRPC: it leaves its marks to its parent.
        has_children: This process was forked; what its children spooled is to be delivered.
        stamps: Records the edges of phases on the GPU; None where the program has not started CUDA, and
            in a forked child, where CUDA does not work.
    """

    def __init__(self, socket: _Path | None, token_file: _Path | None, spool: _Path | None) -> None:
        self.sockets = [os.fspath(socket)] if socket else identity.sockets()
        self.token_file = os.fspath(token_file) if token_file else os.environ.get("WATTD_TOKEN_FILE")
        self.spool = os.fspath(spool) if spool else identity.spool()
        self.names: dict[str, str] = {}
        self._warned = set[str]()
        # gRPC does not survive a fork: its child may only write the spool, which the parent delivers.
        self.spool_only = self.has_children = self._is_child = False
        self.stamps: Stamps | None = None
        self._sender: Sender | None = None
        self._begin_anew()
        _clients.add(self)

    def _begin_anew(self) -> None:
        self.client_id = identity.random_id()
        self.queue: Queue = deque()
        self.append: Callable[[Phase], None] = self._append_first
        self.strays = self.dropped = 0
        self._sender = None
        self._lock = threading.Lock()

    def run(
        self,
        name: str,
        *,
        method: str | None = None,
        seed: int | None = None,
        tokens_phase: str | None = None,
        resume: bool = False,
        run_id: str | None = None,
        sync: bool = False,
    ) -> Run:
        """A run, to be used in a `with` statement.

        Args:
            name: What people call it; need not be unique. 1 to 64 of A-Z a-z 0-9 _ . : -
            method: Distillation method (`response`, `feature`, `relation`, `sft`, ...).
            seed: Random seed.
            tokens_phase: The phase whose tokens are the run's; by default `student_forward`, else the
                phase with the most tokens.
            resume: The run goes on from a checkpoint under the same run_id.
            run_id: Identity shared by all ranks; by default found from the launch.
            sync: Wait for the GPU at each edge of a phase. This slows the run, and is recorded. Without
                it a program that has started CUDA gets an event on its current stream at each edge
                (WATTD_GPU_EVENTS=0: none), which costs some microseconds and waits for nothing.
        """
        sent = self.check(name)
        facts: dict[str, Any] = {
            "method": self.check(method) if method else "",
            "seed": self._seed(seed),
            "tokens_phase": self.check(tokens_phase) if tokens_phase else "",
            "resume": resume or identity.restarted(),
            "sync": bool(sync),
        }
        shared = identity.run_id(sent, given=run_id, resume=facts["resume"])
        return Run(self, sent, self.check(shared), facts)

    def _seed(self, seed: int | None) -> int | None:
        if seed is None:
            return None
        try:
            return int(struct.unpack("<q", struct.pack("<q", seed))[0])
        except struct.error:
            self.warn(f"seed={seed!r} is no whole number of 64 bits: left out")
            return None

    def check(self, name: str) -> str:
        """The name as it is sent: letters that are not allowed become `_`, and that is said once."""
        text = str(name)
        sent = "".join(letter if letter in _LETTERS else "_" for letter in text[:_MOST_LETTERS]) or "_"
        if sent != text:
            self.warn(f"name {text[:80]!r} is marked as {sent}: 1 to 64 of A-Z a-z 0-9 _ . : - are allowed")
        if len(self.names) < _MOST_NAMES:  # names made from a counter must not fill the memory
            self.names[name] = sent
        return sent

    def find_gpu(self) -> bool:
        """Whether the edges of phases can be seen on a GPU; looked at again until they can."""
        if self.stamps is None and not self._is_child:
            self.stamps = stamps.find()
        return self.stamps is not None

    def put(self, item: Item) -> None:
        """Queue what is not a phase, and see that somebody takes it."""
        self.queue.append(item)
        self.start()

    def _append_first(self, phase: Phase) -> None:
        """The first phase of this process; those that follow find the bare append."""
        self.append = self.queue.append
        self.put(phase)

    def overflow(self) -> None:
        """Count phases from here on instead of queueing them, until `relieve`."""
        self.append = self._drop
        self.warn("marks are made faster than they can be sent; some are dropped, and counted")

    def relieve(self) -> None:
        """Queue phases again."""
        self.append = self.queue.append

    def _drop(self, _phase: Phase) -> None:
        with self._lock:
            self.dropped += 1

    def take_dropped(self) -> int:
        """How many phases were dropped since this was last asked."""
        with self._lock:
            dropped, self.dropped = self.dropped, 0
        return dropped

    def start(self) -> None:
        """Start the sender if it does not run."""
        if self._sender is not None:
            return
        from kdclient.sender import Sender  # noqa: PLC0415 - only a program that marks pays for it

        with self._lock:
            if self._sender is None:
                sender = Sender(self)
                try:
                    sender.start()
                except RuntimeError:  # no thread is to be had: the training matters more
                    self.append = self._drop
                    self.queue.clear()
                else:
                    self._sender = sender
                    _close_with_worker(self)
                    return
        if self._sender is None:
            self.warn("no phase is marked: this process can't start another thread")

    def flush(self, seconds: float) -> bool:
        """Wait until all that was marked is on the daemon's disk, else in the spool.

        Args:
            seconds: How long the daemon is waited for, at most.

        Returns:
            Whether the daemon has it all.
        """
        sender = self._sender
        if sender is None or not sender.works():
            return sender is None
        answer: SimpleQueue[bool] = SimpleQueue()
        self.queue.append(Ticket(time.monotonic() + seconds, answer.put))
        sender.wake()
        try:
            return answer.get(timeout=seconds + 1.0)
        except Empty:
            return False

    def close(self) -> None:
        """Flush and stop the sender; the end of the process does this."""
        self.flush(seconds=2.0)
        with self._lock:
            sender, self._sender = self._sender, None
            self.append = self._append_first
        if sender is not None:
            sender.stop()
            # Marks that follow are another client's: their numbers begin anew.
            self.client_id = identity.random_id()

    def stray(self, message: str) -> None:
        """Count a begin or an end that means nothing, and say so once."""
        self.strays += 1
        self.warn(message)

    def warn(self, message: str) -> None:
        """Say something once, on standard error."""
        if message not in self._warned and len(self._warned) < _MOST_WARNINGS:
            self._warned.add(message)
            # None in a windowless program; closed or a broken pipe when a log has gone away.
            with contextlib.suppress(AttributeError, OSError, ValueError):
                sys.stderr.write(f"wattd: {message}\n")
                sys.stderr.flush()

    def before_fork(self) -> None:
        """Let the sender finish its imports, which a forked child could not."""
        sender = self._sender
        if sender is not None and sender.works():
            sender.await_loaded()

    def after_fork(self) -> None:
        """A forked child has a queue, a sender and an identity of its own."""
        if self._sender is not None:
            self._sender.abandon()
        self.spool_only = "grpc" in sys.modules
        self.has_children = False
        self.stamps, self._is_child = None, True
        self._begin_anew()


def connect(
    socket: _Path | None = None, token_file: _Path | None = None, spool: _Path | None = None
) -> Client:
    """Get ready to mark runs; never fails and never waits.

    Args:
        socket: The daemon's Unix socket; by default WATTD_SOCKET, else the user's own daemon, else the
            node's.
        token_file: File with the job's token; by default WATTD_TOKEN_FILE, else no token is sent.
        spool: Folder for marks that can't be delivered yet; by default WATTD_SPOOL, else
            ~/.local/state/wattd/spool.
    """
    return Client(socket, token_file, spool)


def _close_with_worker(client: Client) -> None:
    """A forked worker of multiprocessing ends without atexit, but runs its finalizers."""
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        util.Finalize(None, client.close, exitpriority=1)


def _before_fork() -> None:
    for client in list(_clients):
        client.before_fork()


def _after_fork() -> None:
    for client in list(_clients):
        client.after_fork()


def _after_fork_in_parent() -> None:
    for client in list(_clients):
        client.has_children = True


def _at_exit() -> None:
    for client in list(_clients):
        client.close()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork, after_in_parent=_after_fork_in_parent)
atexit.register(_at_exit)
