"""The simulated driver, built once a session."""

import os
from pathlib import Path

import pytest

from tests.nvml.driver import CompilerMissingError, build, compiler


@pytest.fixture(scope="session", autouse=True)
def must_have_compiler() -> None:
    """Nothing here works without a C compiler, and continuous integration has one."""
    try:
        compiler()
    except CompilerMissingError as error:
        assert not os.environ.get("CI"), "CI has a C compiler"
        pytest.skip(f"left out: {error}")


@pytest.fixture(scope="session")
def library(must_have_compiler: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, compiled."""
    return build(tmp_path_factory.mktemp("nvml"))
