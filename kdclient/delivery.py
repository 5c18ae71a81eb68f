"""Delivery of what processes that are gone have left in a spool, under their own identity."""

import threading
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError

from kdclient.link import Link, listens
from kdclient.spool import MARKS, Counts, Orphan, orphans
from wattd.v1 import marks_pb2

_IN_FLIGHT = 8
_ANSWER_SECONDS = 30.0


def renamed(request: marks_pb2.SendResultsRequest, names: Mapping[str, str]) -> marks_pb2.SendResultsRequest:
    """Results under the ids that the daemon gave their runs."""
    results: list[Any] = [*request.evaluations, *request.energy_per_token]
    for result in results:
        result.run_id = names.get(result.run_id, result.run_id)
    return request


def deliver_all(socket: str, folder: str, token_file: str | None) -> Counts:
    """See `kdclient.spool.deliver`."""
    counts = Counts()
    for orphan in orphans(folder):
        if listens(socket) and _Courier(socket, token_file, orphan, counts).deliver():
            counts.files += 1
            orphan.remove()
        else:
            counts.left += 1
    return counts


class _Courier:
    """Carries one spool file."""

    def __init__(self, socket: str, token_file: str | None, orphan: Orphan, counts: Counts) -> None:
        self._orphan = orphan
        self._counts = counts
        self._event = threading.Event()
        self._names: dict[str, str] = {}
        self._in_flight = 0
        self._link = Link(socket, token_file, self._event.set)

    def deliver(self) -> bool:
        """Whether the daemon has everything on disk."""
        results = []
        try:
            for kind, body in self._orphan.records():
                if kind != MARKS:
                    results.append(body)
                    continue
                try:
                    request = marks_pb2.SendMarksRequest.FromString(body)
                except DecodeError:  # whole, and yet no request: it would stop all that follow
                    self._counts.refused += 1
                    continue
                self._link.send(body)
                self._counts.marks += len(request.runs) + len(request.phases)
                self._in_flight += 1
                if not self._wait(_IN_FLIGHT):
                    return False
            if not self._wait(0):
                return False
            for body in results:
                if not self._carry_results(body):
                    return False
        finally:
            self._link.close(seconds=1.0)
            self._counts.torn_bytes += self._orphan.torn_bytes
        return True

    def _carry_results(self, body: bytes) -> bool:
        """Send results; False when they are to be sent again."""
        try:
            request = renamed(marks_pb2.SendResultsRequest.FromString(body), self._names)
        except DecodeError:
            self._counts.refused += 1
            return True
        if not self._link.send_results(request):
            return False
        if self._link.reason:
            self._link.reason = ""
            self._counts.refused += 1
        else:
            self._counts.results += 1
        return True

    def _wait(self, most: int) -> bool:
        """Wait until at most so many requests have no answer; False when none will come."""
        while self._in_flight > most:
            self._event.clear()
            for response in self._link.taken():
                self._in_flight -= 1
                self._counts.refused += response.refused_marks
                self._names.update(response.renamed_runs)
                break
            else:
                if self._link.closed or not self._event.wait(_ANSWER_SECONDS):
                    return False
        return True
