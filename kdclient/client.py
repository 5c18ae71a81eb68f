"""The connection of a process to its daemon: a queue, and a thread that empties it."""

import atexit
import os
import re
import sys
import threading
import uuid
import weakref
from collections import deque
from typing import TYPE_CHECKING

from kdclient import identity
from kdclient.phases import Item, Queue, Run

if TYPE_CHECKING:
    from kdclient.sender import Sender

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_MOST_WARNINGS = 20
_clients: "weakref.WeakSet[Client]" = weakref.WeakSet()


class Client:
    """A process that marks phases; see `connect`.

    Attributes:
        client_id: Random identity of this process; a forked child gets its own.
        queue: What was marked and not yet taken by the sender.
        names: Names that were checked: as given -> as sent.
        stray_ends: Ends without a begin.
        parent_id: Identity of the process this one was forked from, or empty.
        parent_used_grpc: gRPC had been started when this process was forked off.
        daemon_seen: A daemon has answered at least once.
    """

    def __init__(self, socket: str | None, token_file: str | None, spool: str | None) -> None:
        self.sockets = [socket] if socket else identity.sockets()
        self.token_file = token_file or os.environ.get("WATTD_TOKEN_FILE")
        self.spool = spool or os.environ.get("WATTD_SPOOL") or _default_spool()
        self.names: dict[str, str] = {}
        self.stray_ends = 0
        self._ordinal = 0
        self._warned = set[str]()
        self.parent_id = ""
        self.parent_used_grpc = False
        self.daemon_seen = False
        self._reset()
        _clients.add(self)

    def _reset(self) -> None:
        self.client_id = uuid.uuid4().hex
        self.queue: Queue = deque()
        self._sender: Sender | None = None
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
            sync: Wait for the GPU at each edge of a phase. This slows the run, and is recorded.
        """
        return Run(
            self,
            self.check(name),
            method=self.check(method) if method else "",
            seed=seed,
            tokens_phase=self.check(tokens_phase) if tokens_phase else "",
            resume=resume,
            run_id=self.check(run_id) if run_id else None,
            sync=sync,
        )

    def check(self, name: str) -> str:
        """The name as it is sent: letters that are not allowed become `_`, and that is said once."""
        known = self.names.get(name)
        if known is not None:
            return known
        text = str(name)
        sent = text if _NAME.fullmatch(text) else re.sub(r"[^A-Za-z0-9_.:-]", "_", text)[:64] or "_"
        if sent != text:
            self.warn(f"name {text!r} is marked as {sent!r}: 1 to 64 of A-Z a-z 0-9 _ . : - are allowed")
        if len(self.names) < 10_000:  # a name made from a counter must not fill the memory
            self.names[name] = sent
        return sent

    def next_ordinal(self) -> int:
        """How many runs were begun before in this process."""
        with self._lock:
            self._ordinal += 1
            return self._ordinal - 1

    def put(self, item: Item) -> None:
        """Queue what is not a phase."""
        self.queue.append(item)

    def start(self) -> None:
        """Start the sender if it does not run."""
        with self._lock:
            if self._sender is None:
                from kdclient.sender import Sender  # noqa: PLC0415 - only a program that marks pays for it

                self._sender = Sender(self)
                self._sender.start()

    def flush(self, seconds: float) -> bool:
        """Wait until all that was marked is on the daemon's disk, else in the spool.

        Args:
            seconds: How long the daemon is waited for, at most.

        Returns:
            Whether the daemon has it all.
        """
        return self._sender.flush(seconds) if self._sender is not None else True

    def close(self) -> None:
        """Flush and stop the sender; the end of the process does this."""
        with self._lock:
            sender, self._sender = self._sender, None
        if sender is not None:
            sender.close(seconds=2.0)

    def warn(self, message: str) -> None:
        """Say something once, on standard error."""
        if message not in self._warned and len(self._warned) < _MOST_WARNINGS:
            self._warned.add(message)
            print(f"wattd: {message}", file=sys.stderr, flush=True)

    def after_fork(self) -> None:
        """A forked child has a queue, a sender and an identity of its own."""
        self.parent_id = self.client_id
        self.parent_used_grpc = self._sender is not None or "grpc" in sys.modules
        self._reset()


def connect(socket: str | None = None, token_file: str | None = None, spool: str | None = None) -> Client:
    """Get ready to mark runs; never fails and never waits.

    Args:
        socket: The daemon's Unix socket; by default WATTD_SOCKET, else the user's own daemon, else the
            node's.
        token_file: File with the job's token; by default WATTD_TOKEN_FILE, else no token is sent.
        spool: Folder for marks that can't be delivered yet; by default WATTD_SPOOL, else
            ~/.local/state/wattd/spool.
    """
    return Client(socket, token_file, spool)


def _default_spool() -> str:
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111 - pathlib is slow to import
    return f"{state}/wattd/spool"


def _after_fork() -> None:
    for client in list(_clients):
        client.after_fork()


def _at_exit() -> None:
    for client in list(_clients):
        client.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
