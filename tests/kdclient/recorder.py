"""A small real daemon for tests: takes marks over gRPC and writes down what came."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc

from wattd.v1 import marks_pb2, marks_pb2_grpc


class Recorder(marks_pb2_grpc.MarkServiceServicer):
    """What a daemon would have on disk; it outlives its servers.

    Attributes:
        marks: (client_id, mark) in the order of arrival, repeats left out.
        repeats: Marks that came again.
        requests: Requests that came.
        results: request_id -> request.
        tokens: What came as `authorization`.
        renamed: Proposed run_id -> the one given.
        delay: Seconds before each answer.
        break_at: Numbers of requests at which the stream breaks; negative: after taking them.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.marks: list[tuple[str, Any]] = []
        self.last: dict[str, int] = {}
        self.repeats = self.requests = self.dropped = 0
        self.results: dict[str, marks_pb2.SendResultsRequest] = {}
        self.tokens: list[Any] = []
        self.renamed: dict[str, str] = {}
        self.delay = 0.0
        self.break_at: set[int] = set()
        self._lock = threading.Lock()
        self._server: grpc.Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, as a new daemon."""
        self._server = grpc.server(ThreadPoolExecutor(16))
        marks_pb2_grpc.add_MarkServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self.socket}")
        self._server.start()

    def stop(self) -> None:
        """Go away in the middle of whatever is under way."""
        if self._server is not None:
            self._server.stop(0).wait(5)
            self._server = None
        self.socket.unlink(missing_ok=True)

    def SendMarks(self, requests: Any, context: Any) -> Iterator[marks_pb2.SendMarksResponse]:  # noqa: N802 - the wire's name
        self.tokens.append(dict(context.invocation_metadata()).get("authorization"))
        for request in requests:
            self.requests += 1
            time.sleep(self.delay)
            if self.requests in self.break_at:
                context.abort(grpc.StatusCode.UNAVAILABLE, "broken on purpose, before anything is taken")
            self._take(request)
            if -self.requests in self.break_at:
                context.abort(grpc.StatusCode.UNAVAILABLE, "broken on purpose, before the answer")
            last = self.last.get(request.client_id, 0)
            yield marks_pb2.SendMarksResponse(acknowledged_sequence=last, renamed_runs=self.renamed)

    def _take(self, request: marks_pb2.SendMarksRequest) -> None:
        with self._lock:
            self.dropped += request.dropped_marks
            marks: list[Any] = [*request.runs, *request.phases]
            for mark in sorted(marks, key=lambda mark: mark.sequence):
                last = self.last.get(request.client_id, 0)
                if mark.sequence <= last:
                    self.repeats += 1
                    continue
                assert mark.sequence == last + 1, "a hole in the sequence"
                self.last[request.client_id] = mark.sequence
                self.marks.append((request.client_id, mark))

    def SendResults(  # noqa: N802 - the wire's name
        self, request: marks_pb2.SendResultsRequest, context: Any
    ) -> marks_pb2.SendResultsResponse:
        self.results[request.request_id] = request
        return marks_pb2.SendResultsResponse(accepted_results=1)

    def phases(self, name: str | None = None) -> list[Any]:
        """Phases that ended."""
        return [
            mark
            for _, mark in self.marks
            if isinstance(mark, marks_pb2.PhaseMark) and mark.kind == 2 and name in {None, mark.name}
        ]

    def runs(self, kind: int | None = None) -> list[Any]:
        """Marks of runs."""
        found = [mark for _, mark in self.marks if isinstance(mark, marks_pb2.RunMark)]
        return [mark for mark in found if kind in {None, mark.kind}]


def main() -> None:
    """Serve at the socket named, in a process of its own, until standard input ends; then say what came."""
    recorder = Recorder(Path(sys.argv[1]))
    with recorder:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()
    json.dump(
        {"marks": len(recorder.marks), "repeats": recorder.repeats, "dropped": recorder.dropped}, sys.stdout
    )


if __name__ == "__main__":
    main()
