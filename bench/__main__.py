"""Measure the promises: `python -m bench [PART ...]`."""

import argparse
import os
import sys

from bench import harness

_EPILOG = """examples:
  python -m bench              every part, a few minutes
  python -m bench marks        one part; its results are merged into bench/results.json
  python -m bench --list       the parts
"""


def main(words: list[str] | None = None) -> int:
    """Run parts and say what they gave.

    Returns:
        0: every promise of these parts holds; 1: one does not, or a part failed; 2: no such part.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the promises of wattd into bench/results.json.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: $PART, else all of them")
    parser.add_argument("--list", action="store_true", help="name the parts")
    arguments = parser.parse_args(words)
    if arguments.list:
        print("\n".join(harness.PARTS))
        return 0
    named = arguments.parts or os.environ.get("PART", "").split()
    unknown = [name for name in named if name not in harness.PARTS]
    if unknown:
        print(f"bench: no part {unknown[0]}; there are {', '.join(harness.PARTS)}", file=sys.stderr)
        return 2
    return _run(named or list(harness.PARTS))


def _run(names: list[str]) -> int:
    results = list[harness.Result]()
    missing = False
    for name in names:
        print(f"bench: {name} ...", file=sys.stderr, flush=True)
        try:
            found = list(harness.run_part(name))
        except harness.MissingPartError as error:
            print(f"bench: {error}", file=sys.stderr)
            missing = True
            continue
        harness.merge(found)
        results += found
    print(harness.table(results))
    missed = [result.name for result in results if result.ok is False]
    if missed:
        print(f"bench: the promise does not hold for {', '.join(missed)}", file=sys.stderr)
    return 1 if missed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
