"""Numbers as people read them: no more digits than are known."""

import math

DASH = "-"


def decimals(half_width: float | None, value: float) -> int:
    """Returns how many decimals a value deserves: two digits of its half-width, or four of itself."""
    scale, digits = (half_width, 2) if half_width else (abs(value), 4)
    if not scale or not math.isfinite(scale):
        return 0
    return min(max(digits - 1 - math.floor(math.log10(scale)), 0), 6)


def number(value: float | None, half_width: float | None = None) -> str:
    """Returns a value with the digits that its half-width leaves, `-` when it is not known."""
    if value is None:
        return DASH
    return f"{value:,.{decimals(half_width, value)}f}"


def plain(value: float | None) -> str:
    """Returns a value with four digits at most and no idle zeros, `-` when it is not known."""
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def half(low: float | None, high: float | None, value: float | None) -> float | None:
    """Returns the half-width of an interval; `None` when it is not known."""
    if low is None or high is None or value is None:
        return None
    return max(high - value, value - low)


def whole(value: int | None) -> str:
    """Returns a count, `-` when it is not known."""
    return DASH if value is None else f"{value:,}"


def per_token(joules: float | None) -> tuple[str, str]:
    """Returns energy per token with a prefix that fits, and its unit."""
    if joules is None:
        return DASH, "J"
    for factor, unit in ((1.0, "J"), (1e3, "mJ"), (1e6, "uJ")):
        if joules * factor >= 1 or unit == "uJ":
            return number(joules * factor), unit
    return DASH, "J"


def share(ratio: float | None) -> str:
    """Returns a ratio as per cent, `-` when it is not known; 100 % only when nothing is missing."""
    if ratio is None:
        return DASH
    return f"{math.floor(ratio * 1000) / 10:.1f}".removesuffix(".0") + " %"
