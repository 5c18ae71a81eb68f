import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wattq.__main__ import main
from wattq.charts import column_watts, dominant, nice_steps, skyline, time_ticks
from wattq.counter import Readings, locate
from wattq.report import bars
from wattq.sweep import Phases, cut

from tests.analysis.archives import MILLI, NANO, START, SimulatedDevice
from tests.analysis.conftest import STEP, Study, make_study

NO_GAPS = np.zeros((0, 2), dtype=np.int64)
pytestmark = pytest.mark.usefixtures("easily_content")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, easily_content: None) -> Path:
    """The page of a simulated training."""
    folder = tmp_path_factory.mktemp("report")
    study = make_study(folder / "archive", steps=30)
    study.writer.devices[1].source = "estimated"
    study.writer.devices[1].uncertainty_ratio = 0.4
    study.writer.phase("run-1", "<script>alert(1)</script>", study.end, study.end + NANO // 2)
    study.writer.events.append(
        {
            "type": "evaluation",
            "request_id": "q",
            "monotonic_nano": study.end,
            "run_id": "run-1",
            "harness": "perplexity",
            "task": "shakespeare",
            "metric": "perplexity",
            "value": 41.25,
            "stderr": 0.5,
            "n": 1000,
            "model": "student",
        }
    )
    study.writer.events.append(
        {
            "type": "gap",
            "begin_monotonic_nano": study.begin,
            "end_monotonic_nano": study.begin + NANO,
            "reason": "daemon_down",
        }
    )
    output = folder / "report.html"
    assert main(["report", str(study.writer.write()), "--output", str(output)]) == 0
    return output


class Tags(HTMLParser):
    """Gathers tags, addresses and what is left open."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.addresses: list[str | None] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes a tag."""
        self.tags.append((tag, dict(attrs)))
        self.addresses += [value for name, value in attrs if name in {"href", "src", "xlink:href", "action"}]
        if tag not in {"meta", "link", "br", "hr", "img", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes a tag that closes itself."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Checks that tags close in order."""
        assert self.open.pop() == tag


def test_page_needs_nothing_from_elsewhere(page: Path) -> None:
    """One file, no script, no address but its own empty icon, and tags that close."""
    tags = Tags()
    text = page.read_text(encoding="utf-8")
    tags.feed(text)
    assert tags.open == []
    assert tags.addresses == ["data:,"]
    assert not re.search(r"https?://|url\(|@import|<script", text)


def test_page_escapes_what_users_named(page: Path) -> None:
    """A name is text, whatever it looks like."""
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_page_says_what_it_must(page: Path) -> None:
    """Run, node, wall time, phases, intervals, estimates, tokens, scores, gaps and sum check are there."""
    text = page.read_text(encoding="utf-8")
    words = [
        "study",
        "node-1",
        "UTC",
        "estimated",
        "measured",
        "tokens of student_forward",
        "perplexity",
        "daemon_down",
    ]
    words += ["= counter", "95 % interval", "A few steps, close up", *(phase for phase, _, _ in STEP)]
    for word in words:
        assert word in text, word


def test_every_picture_has_words(page: Path) -> None:
    """Who cannot see a picture is told what it shows."""
    tags = Tags()
    tags.feed(page.read_text(encoding="utf-8"))
    pictures = [attributes for tag, attributes in tags.tags if tag == "svg"]
    assert len(pictures) >= 4
    assert all(picture["role"] == "img" and len(picture["aria-label"] or "") > 10 for picture in pictures)


def test_page_goes_to_stdout(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """`--output -` writes the page to stdout and nothing else."""
    assert main(["report", str(study.writer.write()), "--output", "-"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("<!DOCTYPE html>")
    assert out.rstrip().endswith("</html>")


def test_more_than_a_dozen_runs_are_named_not_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest runs are drawn and the rest is counted."""
    study = make_study(tmp_path, steps=1)
    for number in range(14):
        study.writer.run(f"r{number}", study.begin, study.end, client=f"x{number}", run=f"other-{number}")
    assert main(["report", str(study.writer.write()), "--output", "-"]) == 0
    out = capsys.readouterr().out
    assert out.count("<article") == 12
    assert "3 older runs are not shown" in out


def test_column_power_is_energy_over_time_and_gaps_are_gaps() -> None:
    """Power is the counter's difference over a column; where there is no reading there is no power."""
    read = np.concatenate([np.arange(0, 4 * NANO, 50 * MILLI), np.arange(8 * NANO, 12 * NANO, 50 * MILLI)])
    counter = locate(Readings(read, read, read / NANO * 70.0))
    watts = column_watts(counter, NO_GAPS, np.arange(0, 12 * NANO, NANO))
    assert np.isnan(watts).tolist() == [False] * 4 + [True] * 4 + [False] * 3
    assert watts[0] == pytest.approx(70.0)


def test_dominant_row_holds_most_of_a_column() -> None:
    """A column of many phases takes the colour of the one with most of it."""
    spans = np.array([(0, 6, 0, 0), (6, 10, 1, 0), (10, 13, 0, 0), (13, 20, 1, 0)], dtype=np.int64)
    pieces = cut(Phases(spans[:, 0], spans[:, 1], spans[:, 2], spans[:, 3], ("a", "b")), [(0, 30)])
    rows = dominant(pieces, np.array([0, 10, 20, 30]))
    assert [pieces.rows[row] for row in rows] == ["a", "b", "(outside)"]


def test_skyline_has_the_area_of_the_energy() -> None:
    """Fillings of a row are as wide as its columns and as high as its power."""
    edges = np.array([0, 1, 2, 3, 4]) * NANO
    watts = np.array([100.0, 100.0, np.nan, 50.0])
    picture = skyline("gpu", edges, watts, np.array([0, 1, 1, 1]), ("a", "b"), offset=0.0)
    assert [area.row for area in picture.areas] == ["a", "b", "b"]
    assert picture.blind == [(500.0, 250.0)]
    assert picture.line.count("M") == 2
    heights = [100 - float(re.findall(r"V([\d.]+)H", area.path)[0]) for area in picture.areas]
    assert heights[2] == pytest.approx(heights[0] / 2, abs=0.02)


@pytest.mark.parametrize(("limit", "steps"), [(100.0, [0, 50, 100]), (620.0, [0, 200, 400, 600]), (0.0, [0])])
def test_axis_marks_are_round_numbers(limit: float, steps: list[float]) -> None:
    """Axes count in ones, twos and fives."""
    assert nice_steps(limit, 4 if limit > 100 else 2) == pytest.approx(steps)


def test_time_axis_changes_its_unit() -> None:
    """Hours are not told in seconds."""
    assert time_ticks(36.0)[1].label == "10 s"
    assert time_ticks(3_600.0)[1].label == "20 min"
    assert time_ticks(86_400.0)[-1].label.endswith(" h")


def row(phase: str, joules: float | None, half: float = 1.0, reason: str | None = None) -> dict[str, Any]:
    """Returns what a bar needs of a row."""
    return {
        "phase": phase,
        "duration_seconds": 1.0,
        "energy_joules": joules,
        "energy_low_joules": None if joules is None else joules - half,
        "energy_high_joules": None if joules is None else joules + half,
        "reason": reason,
    }


def test_bars_add_devices_and_say_which_have_no_number() -> None:
    """A bar has what the devices with a number used, and says of how many that is."""
    made = bars(
        [
            row("a", 10.0),
            row("a", 20.0),
            row("b", 5.0),
            row("b", None, reason="too short"),
            row("c", None, reason="too short"),
            row("(outside)", 99.0),
        ]
    )
    assert [(bar.phase, bar.joules, bar.half) for bar in made] == [
        ("a", 30.0, 2.0),
        ("b", 5.0, 1.0),
        ("c", None, None),
        ("(outside)", 99.0, 1.0),
    ]
    assert made[1].note == "1 of 2 devices; the others are in (unresolved): too short"
    assert made[2].note == "too short"
    assert made[3].high == 100.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; where it is missing the tests are skipped, in CI they fail."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs chromium and chromium-driver")
        pytest.skip("chromium is missing: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_page_in_a_browser(page: Path, browser: Any, width: int, scheme: str) -> None:
    """No error in the console, pictures that are really drawn, nothing wider than the screen."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []
    boxes = "[...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect())"
    script = f"return {boxes}.map(r => [r.width, r.height])"
    skylines = browser.execute_script(script, ".plot svg")
    assert len(skylines) == 4
    assert all(wide > 250 and high > 100 for wide, high in skylines)
    assert len(browser.execute_script(script, ".bar svg")) >= 2 * len(STEP)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    colours = "return getComputedStyle(document.body).backgroundColor"
    assert (
        browser.execute_script(colours) == {"light": "rgb(244, 245, 243)", "dark": "rgb(16, 19, 23)"}[scheme]
    )
    filled = "return [...document.querySelectorAll('.plot path')].map(e => getComputedStyle(e).fill)"
    assert len(set(browser.execute_script(filled))) >= 5


@pytest.mark.slow
def test_tables_can_be_reached_by_keyboard(page: Path, browser: Any) -> None:
    """What scrolls takes the focus."""
    browser.get(page.as_uri())
    assert browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0 && e.ariaLabel)"
    )


def test_many_devices_are_one_skyline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight GPUs are drawn as their sum, not as eight pictures."""
    study = make_study(tmp_path, steps=2)
    study.writer.samples.clear()
    for number in range(1, 8):
        study.writer.devices.append(
            SimulatedDevice(f"GPU-{number}", "gpu", [(START, 100.0)], 20 * MILLI, index=number)
        )
    study.writer.events[0]["gpu_uuids"] = ["GPU-aaaa", *[f"GPU-{number}" for number in range(1, 8)]]
    study.writer.measure(START, study.end + NANO)
    assert main(["report", str(study.writer.write()), "--output", "-"]) == 0
    assert "gpu, 8 devices together" in capsys.readouterr().out
