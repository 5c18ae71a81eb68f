"""The picture of the comparison: how far each tool is off, phase by phase, on a logarithmic scale."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from bench.accuracy.tables import REFERENCE, percent

_LEFT, _RIGHT, _TOP, _ROW, _BAR = 170, 90, 64, 14, 10
_WIDTH = 860
_LEAST, _MOST = 1e-4, 10.0
_COLOURS = ("#0072b2", "#d55e00", "#cc79a7", "#e69f00", "#009e73", "#56b4e9")


def _x(ratio: float) -> float:
    place = math.log(min(max(ratio, _LEAST), _MOST) / _LEAST) / math.log(_MOST / _LEAST)
    return _LEFT + place * (_WIDTH - _LEFT - _RIGHT)


def write(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the real-time cells of the slowest counter as an SVG file; nothing where there are none."""
    real = [cell for cell in cells if cell["kind"] == "real_time" and cell.get("rms_ratio") is not None]
    if not real:
        return
    period = max(cell["counter_milliseconds"] for cell in real)
    real = [cell for cell in real if cell["counter_milliseconds"] == period]
    tools = list(dict.fromkeys(cell["tool"] for cell in real))
    found = {(cell["tool"], cell["phase"]): cell["rms_ratio"] for cell in real}
    group = _ROW * len(tools) + 14
    height = _TOP + group * len(REFERENCE) + 30
    trials = max(cell["trials"] for cell in real)
    steps = real[0]["steps"]
    title = f"Error of a phase's energy: {trials} runs of {steps} steps, simulated NVML, {period} ms counter"
    box = f'viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12" role="img"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        "<title>Error of the energy of each phase, by tool</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="22" font-size="15" font-weight="600">{title}</text>',
    ]
    parts += _legend(tools)
    parts += _grid(height)
    for number, phase in enumerate(REFERENCE):
        top = _TOP + number * group
        parts.append(f'<text x="{_LEFT - 10}" y="{top + group / 2}" text-anchor="end">{phase}</text>')
        for place, tool in enumerate(tools):
            ratio = found.get((tool, phase))
            if ratio is None:
                continue
            y, end = top + place * _ROW, _x(ratio)
            box = f'x="{_LEFT}" y="{y}" width="{max(end - _LEFT, 1):.1f}" height="{_BAR}"'
            parts.append(
                f'<rect {box} fill="{_COLOURS[place % len(_COLOURS)]}"/>'
                f'<text x="{end + 5:.1f}" y="{y + 9}" font-size="10">{percent(ratio)}</text>'
            )
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _legend(tools: Sequence[str]) -> list[str]:
    parts, x = [], 16
    for place, tool in enumerate(tools):
        parts.append(
            f'<rect x="{x}" y="34" width="10" height="10" fill="{_COLOURS[place % len(_COLOURS)]}"/>'
        )
        parts.append(f'<text x="{x + 15}" y="43">{escape(tool)}</text>')
        x += 40 + 7 * len(tool)
    return parts


def _grid(height: int) -> list[str]:
    parts = []
    for power in range(-4, 2):
        x = _x(10.0**power)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{height - 24}" stroke="#dddddd"/>')
        label = f"{100 * 10.0**power:g}%"
        parts.append(
            f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle" fill="#555555">{label}</text>'
        )
    return parts
