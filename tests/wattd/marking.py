"""Requests as a client makes them, for tests of what takes them."""

from itertools import count
from typing import Any

from wattd.v1 import marks_pb2

BOOT = "0123abcd-0000-4000-8000-000000000000"
OTHER_BOOT = "ffff0000-0000-4000-8000-000000000000"
NOW = 1_000_000_000_000
SECOND = 1_000_000_000


class Marker:
    """A client: numbers its marks and phases."""

    def __init__(self, name: str = "a", boot_id: str = BOOT) -> None:
        self.client_id = name * 32
        self.boot_id = boot_id
        self._sequence = count(1)
        self._phase = count(1)

    def request(self, *marks: marks_pb2.RunMark | marks_pb2.PhaseMark) -> marks_pb2.SendMarksRequest:
        return marks_pb2.SendMarksRequest(
            client_id=self.client_id,
            boot_id=self.boot_id,
            pid=7,
            runs=[mark for mark in marks if isinstance(mark, marks_pb2.RunMark)],
            phases=[mark for mark in marks if isinstance(mark, marks_pb2.PhaseMark)],
        )

    def begin_run(self, run_id: str = "run", nano: int = NOW, **changed: Any) -> marks_pb2.RunMark:
        values = {"name": "r", "world_size": 1, "gpu_source": "unknown", **changed}
        return marks_pb2.RunMark(
            sequence=next(self._sequence),
            kind=marks_pb2.RUN_MARK_KIND_BEGIN,
            run_id=run_id,
            monotonic_nano=nano,
            **values,
        )

    def update_run(self, run_id: str, gpu_uuids: list[str], nano: int = NOW) -> marks_pb2.RunMark:
        return marks_pb2.RunMark(
            sequence=next(self._sequence),
            kind=marks_pb2.RUN_MARK_KIND_UPDATE,
            run_id=run_id,
            monotonic_nano=nano,
            gpu_uuids=gpu_uuids,
            gpu_source="torch",
        )

    def end_run(self, run_id: str = "run", nano: int = NOW + SECOND) -> marks_pb2.RunMark:
        return marks_pb2.RunMark(
            sequence=next(self._sequence),
            kind=marks_pb2.RUN_MARK_KIND_END,
            run_id=run_id,
            monotonic_nano=nano,
        )

    def phase(
        self, name: str = "forward", begin: int = NOW, end: int = NOW + 1000, **changed: Any
    ) -> marks_pb2.PhaseMark:
        values = {"run_id": "run", "phase_number": next(self._phase), **changed}
        return marks_pb2.PhaseMark(
            sequence=next(self._sequence),
            kind=marks_pb2.PHASE_MARK_KIND_END,
            name=name,
            begin_monotonic_nano=begin,
            end_monotonic_nano=end,
            **values,
        )

    def open_phase(self, name: str = "forward", begin: int = NOW, **changed: Any) -> marks_pb2.PhaseMark:
        values = {"run_id": "run", "phase_number": next(self._phase), **changed}
        return marks_pb2.PhaseMark(
            sequence=next(self._sequence),
            kind=marks_pb2.PHASE_MARK_KIND_BEGIN,
            name=name,
            begin_monotonic_nano=begin,
            **values,
        )
