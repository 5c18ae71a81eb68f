"""A ring of records in shared memory: one writer, any number of readers, no locks.

The sampler writes and never waits. A reader keeps its own cursor; one that falls behind
loses the oldest records and is told how many. Every record carries its number before and
after its payload, and the writer moves `tail` past a record before it overwrites it, so a
torn read is always seen. Nothing is left behind when the processes end (memfd).
"""

import json
import mmap
import os
import struct
from collections.abc import Sequence
from functools import cache
from typing import Any, Self

from wattd.values import EnergyEdge, PowerEdge, Tick

_HEADER_BYTES = 4096
_WORD = struct.Struct("<Q")
_HEAD, _TAIL, _NEXT_NUMBER = 0, 8, 16
_PROLOGUE = struct.Struct("<QQ")  # number, bytes of payload
_EPILOGUE = struct.Struct("<Q")  # number again
_FRAME_BYTES = _PROLOGUE.size + _EPILOGUE.size
_PADDING = 0  # number of a filler that closes the gap at the end of the memory

_TICK_KIND, _MESSAGE_KIND = b"T", b"J"
_TICK_HEAD = struct.Struct("<cqHHH")  # kind, monotonic_nano, energies, powers, calls


@cache
def _tick_struct(energies: int, powers: int, calls: int) -> struct.Struct:
    return struct.Struct("<cqHHH" + "Hqqq" * energies + "Hdqq" * powers + "HI" * calls)


def encode_tick(
    monotonic_nano: int, energies: Sequence[Any], powers: Sequence[Any], calls: Sequence[Any]
) -> bytes:
    """Pack a tick whose three sequences are flat: four, four and two values an entry."""
    counts = (len(energies) // 4, len(powers) // 4, len(calls) // 2)
    return _tick_struct(*counts).pack(_TICK_KIND, monotonic_nano, *counts, *energies, *powers, *calls)


def encode_message(message: dict[str, Any]) -> bytes:
    """Pack a message (it has a `type`) as JSON."""
    return _MESSAGE_KIND + json.dumps(message, separators=(",", ":")).encode()


def decode(payload: bytes) -> Tick | dict[str, Any]:
    """Unpack what `encode_tick` or `encode_message` packed."""
    if payload[:1] == _MESSAGE_KIND:
        message: dict[str, Any] = json.loads(payload[1:])
        return message
    _, monotonic_nano, energies, powers, calls = _TICK_HEAD.unpack_from(payload)
    flat = _tick_struct(energies, powers, calls).unpack(payload)
    first_power = 5 + 4 * energies
    first_call = first_power + 4 * powers
    return Tick(
        monotonic_nano,
        [EnergyEdge(*flat[i : i + 4]) for i in range(5, first_power, 4)],
        [PowerEdge(*flat[i : i + 4]) for i in range(first_power, first_call, 4)],
        [(flat[i], flat[i + 1]) for i in range(first_call, len(flat), 2)],
    )


class Ring:
    """The ring; `create` in the sampler, `attach` in a process that inherited `fd`.

    Attributes:
        fd: Descriptor of the shared memory.
        memory: The mapping: a header, then `capacity` bytes of records.
        capacity: Bytes for records.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.memory = mmap.mmap(fd, 0)
        self.capacity = len(self.memory) - _HEADER_BYTES

    @classmethod
    def create(cls, capacity_bytes: int) -> Self:
        """Make a ring that holds about `capacity_bytes` of records."""
        fd = os.memfd_create("wattd-ring")
        page = mmap.PAGESIZE
        os.ftruncate(fd, _HEADER_BYTES + -(-capacity_bytes // page) * page)
        ring = cls(fd)
        _WORD.pack_into(ring.memory, _NEXT_NUMBER, 1)
        return ring

    @classmethod
    def attach(cls, fd: int) -> Self:
        """Map the ring behind an inherited descriptor."""
        return cls(fd)

    def close(self) -> None:
        """Unmap the memory and close the descriptor."""
        self.memory.close()
        os.close(self.fd)

    def word(self, offset: int) -> int:
        """A number of the header."""
        value: int = _WORD.unpack_from(self.memory, offset)[0]
        return value

    def write(self, payload: bytes) -> None:
        """Append a record; the oldest ones make room.

        Raises:
            ValueError: The payload is larger than a quarter of the ring.
        """
        length = -(-(len(payload) + _FRAME_BYTES) // 8) * 8
        if length * 4 > self.capacity:
            raise ValueError(f"a record of {len(payload)} bytes does not fit the ring")
        head = self.word(_HEAD)
        room_at_end = self.capacity - head % self.capacity
        if room_at_end < length:
            self._make_room(head, room_at_end)
            if room_at_end >= _PROLOGUE.size:
                at = _HEADER_BYTES + head % self.capacity
                _PROLOGUE.pack_into(self.memory, at, _PADDING, room_at_end)
            head += room_at_end
        self._make_room(head, length)
        number = self.word(_NEXT_NUMBER)
        at = _HEADER_BYTES + head % self.capacity
        _PROLOGUE.pack_into(self.memory, at, number, len(payload))
        start = at + _PROLOGUE.size
        self.memory[start : start + len(payload)] = payload
        _EPILOGUE.pack_into(self.memory, start + len(payload), number)
        _WORD.pack_into(self.memory, _NEXT_NUMBER, number + 1)
        _WORD.pack_into(self.memory, _HEAD, head + length)

    def _make_room(self, head: int, length: int) -> None:
        """Give up the oldest records until `length` bytes from `head` on are free."""
        tail = self.word(_TAIL)
        while head + length - tail > self.capacity:
            tail += self.record_length(tail)
        _WORD.pack_into(self.memory, _TAIL, tail)

    def record_length(self, position: int) -> int:
        """Bytes from a record (or filler) to the next."""
        room_at_end = self.capacity - position % self.capacity
        if room_at_end < _PROLOGUE.size:
            return room_at_end
        number, size = _PROLOGUE.unpack_from(self.memory, _HEADER_BYTES + position % self.capacity)
        if number == _PADDING:
            return room_at_end
        return int(-(-(size + _FRAME_BYTES) // 8) * 8)

    def reader(self, *, from_start: bool = False) -> "RingReader":
        """A cursor: at the oldest record still held, or at the end."""
        return RingReader(self, self.word(_TAIL if from_start else _HEAD))

    def copy(self, position: int) -> tuple[int, bytes] | None:
        """The (number, payload) at a position, or None if it was overwritten meanwhile."""
        at = _HEADER_BYTES + position % self.capacity
        number, size = _PROLOGUE.unpack_from(self.memory, at)
        if size > self.capacity // 4:
            return None
        start = at + _PROLOGUE.size
        payload = bytes(self.memory[start : start + size])
        (after,) = _EPILOGUE.unpack_from(self.memory, start + size)
        # The writer moves the tail first: a tail that has passed us means that what was copied may be mixed.
        if after != number or self.word(_TAIL) > position:
            return None
        return number, payload


class RingReader:
    """Reads a ring in order.

    Attributes:
        lost: Records that were overwritten before they were read.
    """

    def __init__(self, ring: Ring, position: int) -> None:
        self._ring = ring
        self._position = position
        self._expected: int | None = None
        self.lost = 0

    def read_payloads(self) -> list[bytes]:
        """Every record since the last call, oldest first."""
        ring, payloads = self._ring, list[bytes]()
        head = ring.word(_HEAD)
        while self._position < head:
            tail = ring.word(_TAIL)
            if self._position < tail:
                self._position = tail
                continue
            room_at_end = ring.capacity - self._position % ring.capacity
            length = ring.record_length(self._position)
            if length == room_at_end and self._is_filler(room_at_end):
                self._position += length
                continue
            record = ring.copy(self._position)
            if record is None:
                continue  # overwritten under our hands: the tail has moved
            number, payload = record
            if self._expected is not None:
                self.lost += number - self._expected
            self._expected = number + 1
            self._position += length
            payloads.append(payload)
        return payloads

    def _is_filler(self, room_at_end: int) -> bool:
        if room_at_end < _PROLOGUE.size:
            return True
        at = _HEADER_BYTES + self._position % self._ring.capacity
        number, _ = _PROLOGUE.unpack_from(self._ring.memory, at)
        return bool(number == _PADDING)

    def read(self) -> list[Tick | dict[str, Any]]:
        """As `read_payloads`, decoded."""
        return [decode(payload) for payload in self.read_payloads()]
