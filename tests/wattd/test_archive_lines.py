import json
import random
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from wattd.archive.lines import microjoules, second_body, tick_body
from wattd.values import EnergyEdge, PowerEdge, Tick

_T = 3_600_000_000_000
_MICROJOULES = st.integers(0, 10**15)


def _decoded(body: bytes) -> dict[str, object]:
    decoded: dict[str, object] = json.loads(b"{" + body)
    return decoded


@given(_MICROJOULES, _MICROJOULES)
def test_energies_are_exact_to_the_microjoule(energy: int, offset: int) -> None:
    """What is written has at most six decimals and is the very number of microjoules."""
    body = tick_body(Tick(_T, [EnergyEdge(0, energy, _T, 0)], [], []), {0: offset})
    text = json.loads(b"{" + body, parse_float=str)["energy_joules"][0]
    assert Decimal(text) * 10**6 == energy + offset
    assert microjoules(float(text)) == energy + offset


@given(
    st.lists(
        st.tuples(st.integers(-60_000_000, 2_000_000), st.integers(1, 500_000_000)), min_size=1, max_size=6
    )
)
def test_a_written_bracket_holds_the_edge(edges: list[tuple[int, int]]) -> None:
    """However times are shortened, the edge still lies between the old and the new reading."""
    energies = [
        EnergyEdge(number, number, _T + read, _T + read - old) for number, (read, old) in enumerate(edges)
    ]
    line = _decoded(tick_body(Tick(_T, energies, [], []), dict.fromkeys(range(6), 0)))
    moment = line["monotonic_nano"]
    assert isinstance(moment, int)
    assert _T <= moment <= max(_T, *(edge.read_nano for edge in energies))
    olds, reads = line["old_us"], line.get("read_us", [0] * len(edges))
    assert isinstance(olds, list)
    assert isinstance(reads, list)
    located = list[int]()
    olds = olds * len(edges) if len(olds) == 1 else olds
    for edge, old_us, read_us in zip(energies, olds, reads, strict=True):
        assert moment + old_us * 1000 <= edge.old_nano
        assert edge.old_nano - (moment + old_us * 1000) <= 101_000
        if len(edges) > 1 and edge.read_nano - edge.old_nano <= 1_000_000:
            located.append(edge.old_nano - (moment + old_us * 1000))
        assert abs(moment + read_us * 1000 - edge.read_nano) <= 50_000
    if len(set(olds)) > 1:
        assert all(rounding <= 1_000 for rounding in located), "what was located stays so"


def test_a_tick_of_a_node_that_is_followed_takes_at_most_250_bytes() -> None:
    """8 GPUs whose counters and powers are located to 0.7 ms, gathered for 50 ms, beside 4 RAPL domains."""
    rng = random.Random(2)  # noqa: S311 - noise, not a secret
    counters, total = [rng.randrange(10**12) for _ in range(12)], 0
    held_energies, held_powers = list[EnergyEdge](), list[PowerEdge]()
    for number in range(1000):
        now = _T + number * 10_000_000
        energies, powers = [], []
        for device in range(12):
            if device >= 8:
                counters[device] += rng.randrange(300_000, 700_000)
                energies.append(EnergyEdge(device, counters[device], now + 10_000, now - 10**7))
            elif (number + device) % 10 == 0:
                counters[device] += rng.randrange(10_000, 70_000) * 1000
                read = now - rng.randrange(50_000_000)
                energies.append(EnergyEdge(device, counters[device], read, read - 700_000))
                powers.append(PowerEdge(device, round(rng.uniform(90, 700), 3), read, read - 700_000))
        if number % 5:  # what the GPUs showed meanwhile goes with every fifth tick
            total += len(tick_body(Tick(now, energies[-4:], [], []), dict.fromkeys(range(12), 0))) + 15
            held_energies, held_powers = held_energies + energies[:-4], held_powers + powers
        else:
            gathered = Tick(now, held_energies + energies, held_powers + powers, [])
            total += len(tick_body(gathered, dict.fromkeys(range(12), 0))) + 15
            held_energies, held_powers = [], []
    assert total / 1000 <= 250


def test_an_unknown_earlier_side_stays_unknown() -> None:
    """The first reading of a device has no bracket: null beside others, nothing at all alone."""
    first = EnergyEdge(0, 1, _T, 0)
    later = EnergyEdge(1, 1, _T, _T - 10_000_000)
    assert _decoded(tick_body(Tick(_T, [first, later], [], []), {0: 0, 1: 0}))["old_us"] == [None, -10_000]
    assert "old_us" not in _decoded(tick_body(Tick(_T, [first], [], []), {0: 0}))


def test_powers_and_slow_calls_are_written() -> None:
    """Each quantity has its own devices and times; slow calls stand as pairs."""
    tick = Tick(_T, [], [PowerEdge(3, 421.5, _T + 90_000, _T - 100_000_000)], [(3, 1500)])
    assert _decoded(tick_body(tick, {})) == {
        "type": "tick",
        "monotonic_nano": _T + 90_000,
        "power_device": [3],
        "power_watts": [421.5],
        "power_old_us": [-100_090],
        "call_us": [[3, 1500]],
    }


def test_a_second_has_joules_instead_of_microjoules() -> None:
    """The other keys go through as the sampler gave them."""
    second = {"type": "second", "monotonic_nano": 5, "device": [2], "energy_microjoules": [1_500_001]}
    body = second_body({**second, "ticks": 100}, {2: 1})
    assert _decoded(body) == {
        "type": "second",
        "monotonic_nano": 5,
        "device": [2],
        "energy_joules": [1.500002],
        "ticks": 100,
    }


def test_a_tick_of_a_large_node_takes_at_most_250_bytes() -> None:
    """8 GPUs that update every 100 ms and 4 RAPL domains on every tick, at 100 Hz, on average."""
    rng = random.Random(1)  # noqa: S311 - noise, not a secret
    counters = [rng.randrange(10**12) for _ in range(12)]
    total = 0
    for number in range(1000):
        now = _T + number * 10_000_000
        energies, powers = [], []
        for device in range(12):
            is_gpu = device < 8
            if is_gpu and (number + device) % 10:
                continue
            counters[device] += rng.randrange(30_000, 70_000_000)
            energies.append(
                EnergyEdge(device, counters[device], now + 10_000, now - 10_000_000 + rng.randrange(20_000))
            )
            if is_gpu:
                powers.append(PowerEdge(device, round(rng.uniform(90, 700), 3), now + 10_000, now - 10**7))
        total += len(tick_body(Tick(now, energies, powers, []), dict.fromkeys(range(12), 0))) + 15
    assert total / 1000 <= 250
