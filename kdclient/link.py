"""One connection to a daemon. Only the sender thread imports this: grpc is not the training's to load."""

import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue

# Before gRPC is imported, which reads it: it would print a line for each attempt to reach a daemon.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Its fork handlers can crash a forked child (seen: SIGSEGV, SIGABRT); ours never uses gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

from wattd.v1 import marks_pb2, marks_pb2_grpc

_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # a new connection is new, with a back-off of its own
    ("grpc.enable_http_proxy", 0),
    ("grpc.default_authority", "localhost"),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_RESULT_SECONDS = 1.5


def listens(path: str) -> bool:
    """Whether anybody answers at a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        try:
            probe.connect(path)
        except (OSError, ValueError):
            return False
    return True


def _metadata(token_file: str | None) -> tuple[tuple[str, str], ...]:
    """The job's token as metadata; none where the file can't be read (the daemon will say so)."""
    if not token_file:
        return ()
    try:
        with open(token_file, encoding="ascii") as file:  # noqa: PTH123 - pathlib is slow to import
            return (("authorization", f"Bearer {file.read().strip()}"),)
    except (OSError, ValueError):
        return ()


class Link:
    """A stream of marks to a daemon.

    Attributes:
        responses: What the daemon answered and nobody looked at yet.
        closed: The stream has ended; it does not come back.
        reason: Why it ended, in the daemon's words; empty where it just went away.
    """

    def __init__(self, path: str, token_file: str | None, wake: Callable[[], None]) -> None:
        """Begin a stream.

        Args:
            path: The daemon's Unix socket.
            token_file: File with the token, or None.
            wake: Called from another thread when there is a response, and at the end.
        """
        self.responses: deque[marks_pb2.SendMarksResponse] = deque()
        self.closed = False
        self.reason = ""
        self._wake = wake
        self._metadata = _metadata(token_file)
        self._channel = grpc.insecure_channel(f"unix:{path}", options=_OPTIONS)
        self._stub = marks_pb2_grpc.MarkServiceStub(self._channel)
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        # The bytes go out as they are: they were serialised once, for the spool as for the wire.
        stream: grpc.StreamStreamMultiCallable[bytes, marks_pb2.SendMarksResponse] = (
            self._channel.stream_stream(
                "/wattd.v1.MarkService/SendMarks",
                request_serializer=None,
                response_deserializer=marks_pb2.SendMarksResponse.FromString,
            )
        )
        self._call = stream(iter(self._requests.get, None), metadata=self._metadata)
        self._reader = threading.Thread(target=self._read, name="wattd-reader", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            for response in self._call:
                self.responses.append(response)
                self._wake()
        except grpc.RpcError as error:
            if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}:
                self.reason = " ".join(f"{error.code().name.lower()} {error.details()}".split())
        finally:
            self.closed = True
            self._wake()

    def send(self, data: bytes) -> None:
        """Put a serialised SendMarksRequest on its way."""
        self._requests.put(data)

    def send_results(self, request: marks_pb2.SendResultsRequest) -> bool:
        """Send results and wait until they are on the daemon's disk.

        Returns:
            False: not now. True: they are there, or the daemon refuses them, which `reason` says.
        """
        try:
            self._stub.SendResults(request, timeout=_RESULT_SECONDS, metadata=self._metadata)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                return False
            self.reason = error.details() or ""
        return True

    def taken(self) -> Iterator[marks_pb2.SendMarksResponse]:
        """The responses that came, each once."""
        while self.responses:
            yield self.responses.popleft()

    def close(self, seconds: float = 0.0) -> None:
        """End the stream; what was sent and not answered is not waited for beyond `seconds`."""
        self._requests.put(None)
        self._reader.join(seconds)
        self._channel.close()
