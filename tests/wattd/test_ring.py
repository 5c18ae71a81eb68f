"""The ring: what is read is what was written, in order, and what is lost is counted."""

import multiprocessing
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattd.ring import Ring, decode, encode_message, encode_tick
from wattd.values import EnergyEdge, PowerEdge, Tick


@pytest.fixture
def ring() -> Iterator[Ring]:
    """A ring of one page."""
    ring = Ring.create(4096)
    yield ring
    ring.close()


@given(st.lists(st.binary(max_size=900), max_size=200), st.integers(1, 20))
def test_reader_sees_every_record_in_order_or_counts_it(payloads: list[bytes], batch: int) -> None:
    """Records that were read plus records that were lost are those that were written."""
    ring = Ring.create(4096)
    reader, seen, lost_at = ring.reader(), list[bytes](), list[int]()
    for at in range(0, len(payloads), batch):
        for payload in payloads[at : at + batch]:
            ring.write(payload)
        seen += reader.read_payloads()
        lost_at.append(reader.lost)
    ring.close()
    assert len(seen) + reader.lost == len(payloads)
    assert lost_at == sorted(lost_at)
    remaining = iter(payloads)
    assert all(any(payload == one for one in remaining) for payload in seen), "order is kept"
    if seen:
        assert seen[-1] == payloads[-1], "the newest record is never lost"


def test_reader_from_start_finds_the_oldest_record_still_held(ring: Ring) -> None:
    """A server that starts late reads all that the ring holds."""
    for number in range(1000):
        ring.write(b"%06d" % number)
    kept = ring.reader(from_start=True).read_payloads()
    assert kept == [b"%06d" % number for number in range(1000 - len(kept), 1000)]
    assert len(kept) >= 4096 // 48


def test_record_that_cannot_fit_is_refused(ring: Ring) -> None:
    """A record never takes more than a quarter of the ring."""
    with pytest.raises(ValueError, match="does not fit"):
        ring.write(bytes(4096))


def _write_forever(fd: int) -> None:
    ring = Ring.attach(fd)
    number = 0
    while True:
        body = b"%d" % number
        ring.write(body + b":" + body * (number % 40))
        number += 1


def test_torn_reads_are_seen() -> None:
    """A reader beside a writer that laps it again and again never gets a mixed record."""
    ring = Ring.create(4096)
    os.set_inheritable(ring.fd, True)
    writer = multiprocessing.get_context("fork").Process(target=_write_forever, args=(ring.fd,))
    reader = ring.reader()
    writer.start()
    try:
        last, seen = -1, 0
        while seen < 20_000:
            for payload in reader.read_payloads():
                head, _, tail = payload.partition(b":")
                assert tail == head * (int(head) % 40)
                assert int(head) > last
                last = int(head)
                seen += 1
    finally:
        writer.kill()
        writer.join()
        ring.close()


def test_tick_survives_packing() -> None:
    """A tick comes out of the ring as it went in."""
    packed = encode_tick(7, (1, 2_000_000, 5, 3, 2, 9, 6, 0), (1, 412.25, 5, 4), (3, 1500))
    assert decode(packed) == Tick(
        7, [EnergyEdge(1, 2_000_000, 5, 3), EnergyEdge(2, 9, 6, 0)], [PowerEdge(1, 412.25, 5, 4)], [(3, 1500)]
    )


def test_message_survives_packing() -> None:
    """A message comes out of the ring as it went in."""
    message = {"type": "gap", "reason": "late", "begin_monotonic_nano": 1, "end_monotonic_nano": 2}
    assert decode(encode_message(message)) == message
