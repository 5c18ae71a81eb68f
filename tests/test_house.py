"""The rules of the house that linters do not know."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = sorted(path for path in (ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_says_its_rule(path: Path) -> None:
    """The docstring of a test is the rule it holds the code to."""
    tree = ast.parse(path.read_text())
    silent = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_no_fixture_can_be_taken_for_an_archive_or_a_report() -> None:
    """No tracked file lies in a folder `v=1` or ends in `.html`."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert [name for name in tracked.splitlines() if "v=1/" in name or name.endswith(".html")] == []


def test_version_stands_in_one_place_and_the_changelog_knows_it() -> None:
    """pyproject, the package and the first entry of the changelog agree."""
    import tomllib

    from wattd import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
