import subprocess
import sys
from importlib.util import find_spec

import pytest

from kdclient.__main__ import main


@pytest.mark.parametrize("words", [["--help"], ["distill", "--help"], ["evaluate", "--help"]])
def test_help_has_examples_and_waits_for_nothing(words: list[str]) -> None:
    """Help loads no torch, no transformers and no harness."""
    script = (
        "import sys\nfrom kdclient.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'lm_eval', 'tqdm', 'grpc'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


DISTILL = ["distill", "--teacher", "t", "--student", "s", "--text", "x", "--output", "o"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required"),
        (["destill"], "destill"),
        (["distill"], "--teacher"),
        ([*DISTILL, "--steps", "0"], "1 or more"),
        ([*DISTILL, "--steps", "many"], "whole number"),
        ([*DISTILL, "--cross-entropy", "1.5"], "at most 1"),
        ([*DISTILL, "--temperature", "0"], "above 0"),
        ([*DISTILL, "--temperature", "nan"], "above 0"),
        ([*DISTILL, "--learning-rate", "inf"], "above 0"),
        ([*DISTILL, "--window", "1"], "2 or more"),
        ([*DISTILL, "--stepz", "1"], "--stepz"),
        (["evaluate"], "MODEL"),
    ],
)
def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    """What cannot be meant ends with exit code 2 and says where help is."""
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert "--help" in captured.err


def test_underscores_are_hyphens(capsys: pytest.CaptureFixture[str]) -> None:
    """`--cross_entropy=2` is understood as `--cross-entropy=2`, its value left as it is."""
    assert main([*DISTILL, "--cross_entropy=2"]) == 2
    assert "argument --cross-entropy: 2 must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [("distill", "torch", "training"), ("evaluate", "lm_eval", "evaluation")],
)
def test_a_missing_extra_is_named(command: str, module: str, extra: str) -> None:
    """Without the packages of an extra the line says how to install them."""
    assert find_spec(module) is not None
    script = (
        f"import sys\nsys.modules['{module}'] = None\nfrom kdclient.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = DISTILL if command == "distill" else ["evaluate", "m"]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"kdclient {command} needs the {extra} extra: pip install 'wattd[{extra}]'\n"
