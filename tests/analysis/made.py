"""Small made-up stretches and observations, whose times lie on a grid that brute force can integrate on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from scipy import signal, sparse
from wattq.counter import Floats
from wattq.observations import Observations
from wattq.problem import Problem
from wattq.response import Response
from wattq.stretches import Stretches

GRID = 1e-4
"""All made-up times are multiples of it, seconds."""


@dataclass(frozen=True)
class Made:
    """Stretches with their powers, what is observed of them, and by what sensor."""

    stretches: Stretches
    watts: Floats
    seen: Observations
    response: Response


def stretches_of(start: Floats, stop: Floats, kind: Any = None, instance: Any = None) -> Stretches:
    """Returns stretches, each an instance and a row of its own unless said otherwise."""
    size = len(start)
    number = np.arange(size)
    return Stretches(
        start,
        stop,
        number if kind is None else np.asarray(kind),
        np.zeros(size, dtype=np.int64),
        np.zeros(size),
        number if instance is None else np.asarray(instance),
        np.zeros(size, dtype=bool),
        sparse.csr_matrix((stop - start, (number, number)), shape=(size, size)),
    )


def make(rng: np.random.Generator, *, kinds: int = 4, seconds: float = 0.6) -> Made:
    """Makes stretches of 1 to 30 ms and sees the middle of them through a random sensor."""
    length = rng.integers(10, 300, 400)
    edges = np.append(0, np.cumsum(length))
    edges = edges[: int(np.searchsorted(edges, seconds / GRID)) + 1] * GRID
    size = len(edges) - 1
    kind = rng.integers(0, kinds, size)
    stretches = stretches_of(edges[:-1], edges[1:], kind)
    watts = rng.uniform(50, 700, kinds)[kind] * (1 + 0.03 * rng.standard_normal(size))
    response = Response(
        counter_delay_seconds=float(rng.integers(0, 80)) * GRID,
        rise_seconds=float(rng.uniform(0.0005, 0.005)),
        power_delay_seconds=float(rng.integers(0, 80)) * GRID,
        power_window_seconds=float(rng.integers(50, 400)) * GRID,
        power_gain=float(rng.uniform(0.9, 1.1)),
        power_offset_watts=float(rng.uniform(-20, 20)),
    )
    return Made(stretches, watts, _seen(rng, edges[-1], response), response)


def _seen(rng: np.random.Generator, end: float, response: Response) -> Observations:
    # Brackets and all lie well inside what is known.
    first, end = 0.11, end - 0.01
    counter = np.arange(first, end, 0.04) + rng.integers(-20, 20, len(np.arange(first, end, 0.04))) * GRID
    power = np.arange(first + 0.013, end, 0.05)
    half = rng.integers(1, 20, len(counter)) * GRID
    ends = np.concatenate([counter[1:], power])
    order = np.argsort(ends, kind="stable")
    place = np.argsort(order, kind="stable")
    follower = np.full(len(ends), -1)
    rises = len(counter) - 1
    follower[place[: rises - 1]] = place[1:rises]
    power_half = rng.integers(1, 20, len(power)) * GRID
    return Observations(
        begin=np.append(counter[:-1], np.full(len(power), np.nan))[order],
        end=ends[order],
        value=np.zeros(len(ends)),
        is_power=np.append(np.zeros(rises, bool), np.ones(len(power), bool))[order],
        begin_half=np.append(half[:-1], power_half)[order],
        end_half=np.append(half[1:], power_half)[order],
        follower=follower,
    )


def brute_force(made: Made) -> Floats:
    """Returns what is observed by filtering and summing up on a fine grid, edge by edge of each bracket."""
    fine = GRID / 10
    stretches, response = made.stretches, made.response
    count = round(float(stretches.stop[-1]) / fine)
    time = (np.arange(count) + 0.5) * fine
    drawn = made.watts[np.searchsorted(stretches.start, time, side="right") - 1]
    decay = np.exp(-fine / response.rise_seconds)
    shown = signal.lfilter([1 - decay], [1, -decay], drawn)
    energy = np.append(0.0, np.cumsum(shown) * fine)
    # Of a bracket every moment is as likely as any other.
    within = np.linspace(-1, 1, 401)

    def passed(moment: Floats, half: Floats) -> Floats:
        every = moment[:, None] + half[:, None] * within
        return np.asarray(np.interp(every, np.arange(count + 1) * fine, energy).mean(axis=1))

    seen = made.seen
    late = seen.end - np.where(seen.is_power, response.power_delay_seconds, response.counter_delay_seconds)
    early = np.where(
        seen.is_power, late - response.power_window_seconds, seen.begin - response.counter_delay_seconds
    )
    early_half, whole = seen.begin_half, np.ones(len(late))
    if response.counter_window_seconds is not None:
        # It looks at the last part of its period, whose both sides move with the end.
        early = np.where(seen.is_power, early, late - response.counter_window_seconds)
        early_half = seen.end_half
        whole = (seen.end - seen.begin) / response.counter_window_seconds
    rise = passed(late, seen.end_half) - passed(early, early_half)
    rise = np.where(seen.is_power, rise, rise * whole)
    reading = response.power_gain * rise / response.power_window_seconds + response.power_offset_watts
    return np.where(seen.is_power, reading, rise)


def problem_of(made: Made, value: Floats | None = None, **keys: Any) -> Problem:
    """Returns the regression over what was made; each kind has one mean."""
    seen = made.seen
    if value is not None:
        seen = Observations(
            seen.begin, seen.end, value, seen.is_power, seen.begin_half, seen.end_half, seen.follower
        )
    return Problem(seen, made.stretches, np.zeros(len(made.watts), dtype=np.int64), 300.0, 700.0, **keys)


seeds = st.integers(0, 2**32 - 1)
"""Of everything that is random in a test."""
