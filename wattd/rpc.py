"""gRPC: the marks and results that clients send, and the socket they come through."""

import asyncio
import contextlib
import fcntl
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import grpc
import grpc.aio

from wattd.checks import RefusedError, check_sender
from wattd.marks import Intake
from wattd.results import take_results
from wattd.v1 import marks_pb2, marks_pb2_grpc
from wattd.values import UserError

LOST_CLIENT_SECONDS = 30.0
"""How long a client may be without a stream before what it left open is closed."""

MESSAGE_BYTES = 4 << 20
_DELIVERY_NANO = 60_000_000_000
_OLD_NANO = 10_000_000_000
_MOST_CALLS = 2048
_MOST_SOCKET_PATH = 107


class EventLog(Protocol):
    """Where lines of kind=events go."""

    def append(self, lines: Sequence[dict[str, Any]]) -> None:
        """Add lines that the state knows already, and let everybody know who accounts for them."""

    def commit(self) -> "asyncio.Future[None]":
        """Done when everything added so far is on disk."""

    async def room(self) -> None:
        """Wait while too much waits for the disk."""


class MarkService(marks_pb2_grpc.MarkServiceServicer):
    """Takes marks; answers when they are on disk.

    Attributes:
        marks: Lines made of marks since the start.
        refused: Marks and results refused since the start.
        dropped: Marks that clients said they had to drop.
    """

    def __init__(
        self,
        intake: Intake,
        log: EventLog,
        boot_id: str,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        lost_client_seconds: float = LOST_CLIENT_SECONDS,
    ) -> None:
        """Make the service.

        Args:
            intake: Checks marks and applies them to the state.
            log: Writes them.
            boot_id: Boot id of this machine.
            clock: Monotonic nanoseconds.
            lost_client_seconds: See LOST_CLIENT_SECONDS.
        """
        self._intake = intake
        self._log = log
        self._boot_id = boot_id
        self._clock = clock
        self._lost_client_seconds = lost_client_seconds
        self._streams: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._stopping = False
        self.marks = self.refused = self.dropped = 0

    async def SendMarks(  # noqa: N802 - the wire's name
        self,
        requests: AsyncIterator[marks_pb2.SendMarksRequest],
        context: "grpc.aio.ServicerContext[Any, Any]",
    ) -> AsyncIterator[marks_pb2.SendMarksResponse]:
        """See marks.proto."""
        client_id, started_nano = "", self._clock()
        try:
            async for request in requests:
                try:
                    check_sender(request.client_id, request.boot_id)
                    if client_id and request.client_id != client_id:
                        raise RefusedError("a stream is one client's")  # noqa: TRY301 - refused like the rest
                except RefusedError as refusal:
                    self.refused += len(request.runs) + len(request.phases)
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(refusal))
                if not client_id:
                    client_id = request.client_id
                    self._arrive(client_id)
                yield await self._take(request)
        finally:
            if client_id:
                self._leave(client_id, started_nano)

    async def _take(self, request: marks_pb2.SendMarksRequest) -> marks_pb2.SendMarksResponse:
        """Take a request and wait until it is on disk."""
        await self._log.room()
        # From here to the append nothing may wait: state and archive change together.
        taken = self._intake.take(request, self._clock())
        self._log.append(taken.lines)
        client = self._intake.state.client(request.client_id)
        response = marks_pb2.SendMarksResponse(
            acknowledged_sequence=client.sequence,
            refused_marks=taken.refused,
            refusal=taken.refusal,
            renamed_runs=client.renamed,
        )
        self.marks += len(taken.lines)
        self.refused += taken.refused
        self.dropped += taken.dropped
        await self._log.commit()
        return response

    async def SendResults(  # noqa: N802 - the wire's name
        self, request: marks_pb2.SendResultsRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> marks_pb2.SendResultsResponse:
        """See marks.proto."""
        await self._log.room()
        try:
            count, lines = take_results(self._intake.state, request, self._boot_id)
        except RefusedError as refusal:
            self.refused += 1
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(refusal))
        self._log.append(lines)
        await self._log.commit()
        return marks_pb2.SendResultsResponse(accepted_results=count)

    def expect(self, client_ids: Iterable[str]) -> None:
        """Clients that an earlier server left with something open: they have as long to come back as any.

        A restart closes nothing by itself. But one that died meanwhile will never have a stream that
        ends; what it left open ends with its last mark.
        """
        loop = asyncio.get_running_loop()
        for client_id in client_ids:
            if client_id not in self._streams and client_id not in self._timers:
                self._timers[client_id] = loop.call_later(
                    self._lost_client_seconds, self._close_lost, client_id, 0
                )

    def _arrive(self, client_id: str) -> None:
        self._streams[client_id] = self._streams.get(client_id, 0) + 1
        self._intake.connected(client_id, here=True)
        timer = self._timers.pop(client_id, None)
        if timer is not None:
            timer.cancel()

    def _leave(self, client_id: str, started_nano: int) -> None:
        self._streams[client_id] -= 1
        if self._streams[client_id]:
            return
        del self._streams[client_id]
        self._intake.connected(client_id, here=False)
        if not self._stopping:
            loop = asyncio.get_running_loop()
            last_nano = self._last_sign(client_id, started_nano)
            self._timers[client_id] = loop.call_later(
                self._lost_client_seconds, self._close_lost, client_id, last_nano
            )

    def _last_sign(self, client_id: str, started_nano: int) -> int:
        """When the client was last alive: when its stream ended, unless others only delivered its spool.

        A spool is delivered after its client has gone: a short stream whose marks are all old.
        """
        ended_nano, marked_nano = self._clock(), self._intake.state.client(client_id).nano
        is_short = ended_nano - started_nano < _DELIVERY_NANO
        return marked_nano if is_short and marked_nano < started_nano - _OLD_NANO else ended_nano

    def _close_lost(self, client_id: str, ended_nano: int) -> None:
        del self._timers[client_id]
        self._log.append(self._intake.close_lost(client_id, ended_nano))

    @property
    def clients(self) -> int:
        """Clients that are connected."""
        return len(self._streams)

    def stop(self) -> None:
        """From now on a stream that ends says nothing about its client."""
        self._stopping = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()


class OwnerSocket:
    """The owner's Unix socket: nobody else may open it, and no two daemons share it.

    A context manager; inside it the path is free to be bound and stays ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    def __enter__(self) -> Self:
        """Take the path, also from a daemon that died.

        Raises:
            UserError: It is in use, or it cannot be made.
        """
        path = self.path
        if len(os.fsencode(path)) > _MOST_SOCKET_PATH:
            raise UserError(f"socket {path}: longer than {_MOST_SOCKET_PATH} bytes; name a shorter --socket")
        try:
            self._take()
        except UserError:
            self._unlock()
            raise
        except (BlockingIOError, TimeoutError) as error:
            self._unlock()
            raise UserError(
                f"socket {path}: another daemon listens there; stop it or name another --socket"
            ) from error
        except OSError as error:
            self._unlock()
            raise UserError(f"socket {path}: {error.strerror}; name another --socket") from error
        return self

    def _take(self) -> None:
        path = self.path
        path.parent.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        lock = path.with_name(path.name + ".lock")
        self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists() and not path.is_socket():
            raise UserError(f"socket {path}: there is a file of that name; name another --socket")
        self._check_silent()
        path.unlink(missing_ok=True)

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _check_silent(self) -> None:
        """A socket that nobody listens on was left behind; one that answers is in use."""
        if not self.path.exists():
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            # A queue that is full (a time-out) has somebody behind it, too.
            with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                probe.connect(str(self.path))
                raise BlockingIOError

    def bind(self, server: grpc.aio.Server) -> None:
        """Let a gRPC server listen there, for this uid only from the first moment.

        Raises:
            UserError: It cannot be bound.
        """
        before = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{self.path}")
            self.path.chmod(0o600)
        except (RuntimeError, OSError) as error:
            raise UserError(f"socket {self.path}: it cannot be bound; name another --socket") from error
        finally:
            os.umask(before)

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)
        self._unlock()


def make_server() -> grpc.aio.Server:
    """A gRPC server with the bounds of the wire contract; call it inside the event loop."""
    return grpc.aio.server(
        maximum_concurrent_rpcs=_MOST_CALLS,
        options=[
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ("grpc.max_send_message_length", MESSAGE_BYTES),
            ("grpc.max_concurrent_streams", 256),
            ("grpc.so_reuseport", 0),
        ],
    )
