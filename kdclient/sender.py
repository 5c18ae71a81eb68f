"""The thread that takes what was marked and sees that the daemon gets it, now or later."""

import os
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from kdclient import spool
from kdclient.phases import Ticket

if TYPE_CHECKING:
    from kdclient.client import Client
    from kdclient.encoding import Encoder
    from kdclient.link import Link
    from kdclient.outbox import Outbox
    from wattd.v1.marks_pb2 import SendMarksResponse

FLUSH_SECONDS = 0.1
_SOON_SECONDS = 0.005
_HEARTBEAT_SECONDS = 4.0
_MOST_BACK_OFF_SECONDS = 1.0
_SYNC_SECONDS = 1.0
_LOAD_SECONDS = 2.0
_DELIVERY_SECONDS = 2.0

_abandoned: "list[Sender]" = []
"""Senders of the parent, in a forked child: never finalised, for gRPC's threads are not here."""


class _Waiting(NamedTuple):
    """Somebody waits for the marks up to a number, and the results among them."""

    ticket: Ticket
    sequence: int


class Sender:
    """A daemon thread that empties a client's queue."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._event = threading.Event()
        self._loaded = threading.Event()
        self._hurry = self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="wattd-sender", daemon=True)
        self._link: Link | None = None
        self._socket = client.sockets[0]
        self._waiting = deque[_Waiting]()
        self._renamed: dict[str, str] = {}
        self._retry_at = self._flush_at = self._sync_at = self._sent_at = 0.0
        self._back_off = FLUSH_SECONDS
        self._delivery: threading.Thread | None = None
        self._delivery_at = 0.0
        self._said_down = self._answered = False
        self._spool = spool.Spool(client.spool, client.client_id)
        self._encoder: Encoder
        self._outbox: Outbox

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Look at the queue now."""
        self._hurry = True
        self._event.set()

    def stop(self) -> None:
        """End the thread, after a flush; what is not delivered stays in the spool."""
        self._stopping = True
        self._event.set()
        self._thread.join(timeout=2.0)

    def abandon(self) -> None:
        """In a forked child the thread, its connection and its file are the parent's."""
        self._spool.leave()
        _abandoned.append(self)

    def works(self) -> bool:
        """Whether there is any use in waiting for it."""
        return self._thread.is_alive()

    def _prepare(self) -> bool:
        """Load what is needed; where that fails nothing can be marked, and the training goes on."""
        try:
            from kdclient.encoding import Encoder  # noqa: PLC0415 - protobuf is not the training's to wait for
            from kdclient.link import Link  # noqa: F401, PLC0415 - grpc too, see `await_loaded`
            from kdclient.outbox import Outbox  # noqa: PLC0415 - likewise

            self._outbox = Outbox(self._spool, self._client.warn)
            self._encoder = Encoder(self._client, room=self._outbox.has_room)
        except Exception as error:  # noqa: BLE001 - as above
            self._client.warn(f"no phase is marked: {type(error).__name__}: {error}")
            self._client.overflow()
            return False
        finally:
            self._loaded.set()
        return True

    def await_loaded(self) -> None:
        """Wait, not for long, until everything is imported: a fork in the middle of it leaves halves."""
        self._loaded.wait(_LOAD_SECONDS)

    def _loop(self) -> None:
        if not self._prepare():
            return
        while not self._stopping:
            self._event.wait(_SOON_SECONDS if self._encoder.is_awaited() else FLUSH_SECONDS)
            self._event.clear()
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - the training must not see it, nor be left unmarked
                self._client.warn(f"marks are delayed by a fault: {type(error).__name__}: {error}")
        if self._link is not None:
            if self._client.has_children:
                self._deliver()
            self._link.close(seconds=0.5)
        self._outbox.leave()

    def _turn(self) -> None:
        """One look at the queue, the connection and those who wait."""
        now = monotonic()
        if self._hurry or self._encoder.is_awaited() or now >= self._flush_at:
            self._hurry, self._flush_at = False, now + FLUSH_SECONDS
            for item in self._encoder.take():
                if isinstance(item, Ticket):
                    self._waiting.append(_Waiting(item, self._encoder.sequence))
                else:
                    self._outbox.add(item)
                    self._exchange()
        if self._link is None and now >= self._retry_at and not self._client.spool_only:
            self._connect(now)
        self._exchange()
        if self._link is None:
            self._keep(now)
        else:
            self._answer(monotonic())  # results may take long; who waits for marks need not
            self._send_results(self._link)
            if self._client.has_children and now >= self._delivery_at:
                self._start_delivery(now)
            if now - self._sent_at >= _HEARTBEAT_SECONDS:
                self._sent_at = now
                self._link.send(self._encoder.heartbeat())
        self._answer(monotonic())

    def _connect(self, now: float) -> None:
        """Find a daemon that listens, or try again soon."""
        from kdclient.link import Link, listens  # noqa: PLC0415 - grpc is not the training's to wait for

        self._wait_for_daemon(now)
        for path in self._client.sockets:
            if listens(path):
                self._socket = path
                try:
                    self._link = Link(path, self._client.token_file, self._event.set)
                except RuntimeError:  # no thread can be started any more: the interpreter is going
                    return
                self._link.send(self._encoder.heartbeat())  # shows that we live, and what is known of us
                self._sent_at = now
                return
        self._say_down()

    def _wait_for_daemon(self, now: float) -> None:
        self._retry_at = now + self._back_off
        self._back_off = min(2 * self._back_off, _MOST_BACK_OFF_SECONDS)

    def _say_down(self) -> None:
        self._said_down = True
        where = f"marks go to {self._client.spool} and are delivered when one is there"
        if os.access(self._socket, os.F_OK) and not os.access(self._socket, os.W_OK):
            self._client.warn(
                f"the daemon at {self._socket} is not for this user (its owner's alone); {where}"
            )
        else:
            self._client.warn(f"no daemon at {self._socket}; {where}")

    def _exchange(self) -> None:
        """Take what the daemon answered, and send what may be sent."""
        link = self._link
        if link is None:
            return
        closed = link.closed  # before the responses: none comes after it
        for response in link.taken():
            self._take(response)
        if closed:
            self._lost(link)
            return
        while (batch := self._outbox.next()) is not None:
            self._sent_at = monotonic()
            link.send(self._outbox.body(batch))

    def _take(self, response: "SendMarksResponse") -> None:
        self._back_off = FLUSH_SECONDS
        if response.renamed_runs:
            self._renamed.update(response.renamed_runs)
            self._encoder.rename(self._renamed)
        if response.refused_marks:
            self._client.warn(f"the daemon refused marks: {response.refusal}")
        self._outbox.acknowledge(response.acknowledged_sequence)
        if not self._answered:
            self._answered = True
            self._welcome()

    def _welcome(self) -> None:
        """A daemon is there: what others have left for it is carried by a thread of its own."""
        if self._said_down:
            self._client.warn(f"the daemon at {self._socket} is there; marks are delivered")
        self._start_delivery(monotonic())

    def _start_delivery(self, now: float) -> None:
        """Deliver what others left, unless that is under way."""
        self._delivery_at = now + _DELIVERY_SECONDS
        if self._delivery is None or not self._delivery.is_alive():
            self._delivery = threading.Thread(target=self._deliver, name="wattd-delivery", daemon=True)
            self._delivery.start()

    def _deliver(self) -> None:
        spool.deliver(self._socket, self._client.spool, self._client.token_file)

    def _lost(self, link: "Link") -> None:
        link.close()
        self._link = None
        self._answered = False
        self._outbox.lost_link()
        self._wait_for_daemon(monotonic())
        if link.reason:
            self._client.warn(f"the daemon at {self._socket} takes no marks: {link.reason}; they are kept")

    def _keep(self, now: float) -> None:
        """Nobody is there: what waits goes to disk, which is made to hold it once a second."""
        if self._outbox.spill() and now >= self._sync_at:
            self._sync_at = now + _SYNC_SECONDS
            self._outbox.sync()

    def _send_results(self, link: "Link") -> None:
        from kdclient.delivery import renamed  # noqa: PLC0415 - it loads grpc
        from wattd.v1.marks_pb2 import SendResultsRequest  # noqa: PLC0415 - likewise

        while (batch := self._outbox.result_due()) is not None:
            request = SendResultsRequest.FromString(self._outbox.body(batch))
            if not link.send_results(renamed(request, self._renamed)):
                return
            if link.reason:
                self._client.warn(f"the daemon refused a result: {link.reason}")
                link.reason = ""
            self._outbox.result_sent()

    def _answer(self, now: float) -> None:
        """Tell those who wait what became of what they marked before."""
        while self._waiting:
            ticket, sequence = self._waiting[0]
            results = self._outbox.results
            done = self._outbox.acknowledged >= sequence and (not results or results[0].last > sequence)
            if not done and self._link is not None and now < ticket.deadline:
                return
            if not done and self._outbox.spill():
                self._outbox.sync()
            self._waiting.popleft()
            ticket.done(done)
