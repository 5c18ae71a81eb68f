"""One gRPC connection to a daemon: requests out, acknowledgements in."""

import os
import queue
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Said before gRPC starts: it must not write its troubles into the training's log.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

from wattd.v1 import marks_pb2, marks_pb2_grpc

_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
)
_CONNECT_SECONDS = 1.0
_RESULT_SECONDS = 10.0


class Stream:
    """A bidirectional SendMarks call.

    Attributes:
        socket: Where the daemon listens.
        broken: The call has ended; make another.
        refused: The daemon will never take what was sent; the text says why.
    """

    def __init__(self, socket: str, token: str) -> None:
        """Connect.

        Raises:
            ConnectionError: No daemon answers there.
        """
        self.socket = socket
        self.broken = False
        self.refused = ""
        self.responses: queue.SimpleQueue[marks_pb2.SendMarksResponse] = queue.SimpleQueue()
        self.answered = threading.Event()
        self._requests: queue.SimpleQueue[marks_pb2.SendMarksRequest | None] = queue.SimpleQueue()
        self._metadata: tuple[tuple[str, str | bytes], ...] = (
            (("authorization", f"Bearer {token}"),) if token else ()
        )
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        try:
            grpc.channel_ready_future(self._channel).result(timeout=_CONNECT_SECONDS)
        except grpc.FutureTimeoutError as error:
            self._channel.close()
            raise ConnectionError(f"no daemon answers at {socket}") from error
        self._stub = marks_pb2_grpc.MarkServiceStub(self._channel)
        self._call: Any = self._stub.SendMarks(self._outgoing(), metadata=self._metadata)
        threading.Thread(target=self._receive, name="wattd-acks", daemon=True).start()

    def _outgoing(self) -> Iterator[marks_pb2.SendMarksRequest]:
        while (request := self._requests.get()) is not None:
            yield request

    def _receive(self) -> None:
        try:
            for response in self._call:
                self.responses.put(response)
                self.answered.set()
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else None
            if code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}:
                self.refused = str(error.details())
        finally:
            self.broken = True
            self.answered.set()

    def send(self, request: marks_pb2.SendMarksRequest) -> None:
        """Send marks; never waits."""
        self._requests.put(request)

    def send_results(self, request: marks_pb2.SendResultsRequest) -> bool:
        """Send results and wait until they are on disk; false when they must be sent again.

        Raises:
            ValueError: The daemon refuses them for good; the text says why.
        """
        try:
            self._stub.SendResults(request, timeout=_RESULT_SECONDS, metadata=self._metadata)
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.INVALID_ARGUMENT:
                raise ValueError(error.details()) from error
            return False
        return True

    def close(self) -> None:
        """End the call."""
        self._requests.put(None)
        self._call.cancel()
        self._channel.close()


def connect(sockets: Sequence[str], token_file: str | None) -> Stream:
    """Connect to the first daemon that answers.

    Raises:
        ConnectionError: None does.
    """
    token = ""
    if token_file:
        try:
            token = Path(token_file).read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise ConnectionError(f"token file {token_file}: {error}") from error
    for socket in sockets:
        try:
            if stat.S_ISSOCK(os.stat(socket).st_mode):  # noqa: PTH116 - a path like any other
                return Stream(socket, token)
        except (OSError, ConnectionError):
            continue
    raise ConnectionError(f"no daemon at {' or '.join(sockets)}")
