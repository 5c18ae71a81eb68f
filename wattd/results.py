"""Results of evaluations: from requests to lines of kind=events."""

import math
from collections.abc import Iterator
from typing import Any

from wattd.checks import RefusedError, is_name
from wattd.jobs import State
from wattd.v1 import marks_pb2

_MOST_RESULTS = 10_000
_MOST_LETTERS = 256


def take_results(
    state: State, request: marks_pb2.SendResultsRequest, boot_id: str
) -> tuple[int, list[dict[str, Any]]]:
    """Check a request and apply its results to the state.

    Returns:
        How many results stand under its request_id, and the lines that are new (none on a repeat).

    Raises:
        RefusedError: Nothing of it was taken.
    """
    if not is_name(request.request_id):
        raise RefusedError("request_id: 1 to 64 of A-Z a-z 0-9 _ . : -")
    known = state.requests.get(request.request_id)
    if known is not None:
        return known, []
    if len(request.evaluations) + len(request.energy_per_token) > _MOST_RESULTS:
        raise RefusedError(f"more than {_MOST_RESULTS} results in one request")
    head: dict[str, Any] = {"request_id": request.request_id, "monotonic_nano": request.monotonic_nano}
    if request.boot_id and request.boot_id != boot_id:
        head["boot_id"] = _text(request.boot_id, "boot_id")
    lines = [{"type": "evaluation", **head, **dict(_evaluation(result))} for result in request.evaluations]
    lines += [{"type": "ept", **head, **dict(_ept(result))} for result in request.energy_per_token]
    for line in lines:
        state.apply(line)
    return len(lines), lines


def _evaluation(result: marks_pb2.Evaluation) -> Iterator[tuple[str, Any]]:
    yield "run_id", _run_id(result.run_id)
    for key in ("harness", "harness_version", "task", "metric", "settings_sha256", "model"):
        if getattr(result, key):
            yield key, _text(getattr(result, key), key)
    yield "value", _finite(result.value, "value")
    if result.HasField("stderr"):
        yield "stderr", _finite(result.stderr, "stderr")
    if result.n:
        yield "n", result.n


def _ept(result: marks_pb2.EnergyPerToken) -> Iterator[tuple[str, Any]]:
    yield "run_id", _run_id(result.run_id)
    if result.model_sha256:
        yield "model_sha256", _text(result.model_sha256, "model_sha256")
    yield "batch", result.batch
    yield "tokens_in", result.tokens_in
    yield "tokens_out", result.tokens_out
    if result.HasField("energy_prefill_joules"):
        yield "energy_prefill_joules", _finite(result.energy_prefill_joules, "energy_prefill_joules")
    if result.HasField("energy_decode_joules"):
        yield "energy_decode_joules", _finite(result.energy_decode_joules, "energy_decode_joules")
    if result.HasField("energy_joules"):
        yield "energy_joules", _finite(result.energy_joules, "energy_joules")


def _run_id(run_id: str) -> str:
    if not is_name(run_id):
        raise RefusedError("run_id: 1 to 64 of A-Z a-z 0-9 _ . : -")
    return run_id


def _text(text: str, key: str) -> str:
    if len(text) > _MOST_LETTERS or not text.isprintable():
        raise RefusedError(f"{key}: at most {_MOST_LETTERS} printable letters")
    return text


def _finite(value: float, key: str) -> float:
    if not math.isfinite(value):
        raise RefusedError(f"{key} must be a finite number")
    return value
