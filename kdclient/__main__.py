"""`kdclient`: the steps of a distillation study."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from kdclient.errors import UserError
from kdclient.options import parser

# Packages that come with an extra.
_EXTRAS = {
    "torch": "training",
    "transformers": "training",
    "tqdm": "training",
    "lm_eval": "evaluation",
    "datasets": "evaluation",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Without the program's name; by default the process' own.

    Returns:
        Exit code: 0, 1 (failed) or 2 (usage).
    """
    words = [_hyphens(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    try:
        options = parser().parse_args(words)
    except UserError as error:
        print(f"kdclient: {error}", file=sys.stderr)
        return 2
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # else a fork of its threads warns at length
    try:
        return int(import_module(f"kdclient.{options.command}").main(options))
    except UserError as error:
        return _failed(f"{options.command}: {error}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        extra = _EXTRAS[missing]
        return _failed(f"{options.command} needs the {extra} extra: pip install 'wattd[{extra}]'")
    except KeyboardInterrupt:
        return _failed(f"{options.command}: interrupted")
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _failed(line: str) -> int:
    print(f"kdclient {line}", file=sys.stderr)
    return 1


def _hyphens(word: str) -> str:
    """`--eval_every` is `--eval-every`: people coming from other scripts write both."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


if __name__ == "__main__":
    sys.exit(main())
