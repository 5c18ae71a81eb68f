"""What the daemon has not acknowledged yet: in memory, and on disk when it has to wait."""

from collections import deque
from collections.abc import Callable

from kdclient.encoding import Batch
from kdclient.spool import MARKS, Spool

_MOST_BYTES = 64 << 20
_SPILL_BYTES = 16 << 20
_IN_FLIGHT = 8


class Outbox:
    """Batches in order, each kept until the daemon has it on disk.

    Attributes:
        acknowledged: The daemon has every mark up to this number.
        results: Batches of results, oldest first.
    """

    def __init__(self, spool: Spool, warn: Callable[[str], None]) -> None:
        self._spool = spool
        self._warn = warn
        self._marks = deque[Batch]()
        self._bytes = 0
        self._sent = 0
        self.acknowledged = 0
        self.results = deque[Batch]()

    def has_room(self) -> bool:
        """Whether another batch may be kept in memory."""
        return self._bytes < _MOST_BYTES

    def add(self, batch: Batch) -> None:
        """Keep a batch; a slow daemon's go to disk before they fill the memory."""
        (self._marks if batch.kind == MARKS else self.results).append(batch)
        self._bytes += len(batch.data or b"")
        if self._bytes > _SPILL_BYTES:
            self.spill()

    def spill(self) -> bool:
        """Have everything in the spool too, and only there.

        Returns:
            Whether it is; where not, it stays in memory.
        """
        try:
            for batches in (self._marks, self.results):
                for batch in batches:
                    if batch.data is not None:
                        batch.offset = self._spool.append(batch.kind, batch.data)
                        self._bytes -= len(batch.data)
                        batch.data = None
        except OSError as error:
            self._warn(f"cannot write {self._spool.path}: {error.strerror}; marks stay in memory")
            return False
        return True

    def sync(self) -> bool:
        """Have the spool on disk; False where that failed."""
        try:
            self._spool.sync()
        except OSError as error:
            self._warn(f"cannot write {self._spool.path}: {error.strerror}")
            return False
        return True

    def body(self, batch: Batch) -> bytes:
        """The bytes of a batch, wherever they are.

        Raises:
            OSError: The spool does not give them back.
        """
        return self._spool.body(batch.offset) if batch.data is None else batch.data

    def next(self) -> Batch | None:
        """The batch to send now; None when there is none, or enough are under way."""
        if self._sent >= min(_IN_FLIGHT, len(self._marks)):
            return None
        self._sent += 1
        return self._marks[self._sent - 1]

    def lost_link(self) -> None:
        """What was under way is to be sent again."""
        self._sent = 0

    def acknowledge(self, sequence: int) -> None:
        """Forget what the daemon has on disk."""
        self.acknowledged = max(self.acknowledged, sequence)
        while self._marks and self._marks[0].last <= self.acknowledged:
            self._bytes -= len(self._marks.popleft().data or b"")
            self._sent = max(0, self._sent - 1)
        self._tidy()

    def result_due(self) -> Batch | None:
        """The oldest results whose run the daemon knows by now."""
        if self.results and self.results[0].last <= self.acknowledged:
            return self.results[0]
        return None

    def result_sent(self) -> None:
        """The oldest results are on the daemon's disk."""
        self._bytes -= len(self.results.popleft().data or b"")
        self._tidy()

    def _tidy(self) -> None:
        if self.is_empty() and self._spool.size:
            self._spool.remove()

    def is_empty(self) -> bool:
        """Whether the daemon has it all."""
        return not self._marks and not self.results

    def leave(self) -> None:
        """The process ends, or is another one after a fork: what is spooled is the next one's."""
        if self.is_empty():
            self._spool.remove()
        else:
            self._spool.leave()

    def abandon(self) -> None:
        """After a fork the file is the parent's."""
        self._spool.leave()
