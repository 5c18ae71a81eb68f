"""`wattq`: asks an archive."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import duckdb

from wattq import tables
from wattq.errors import UserError
from wattq.loading import Chosen
from wattq.locate import find_archive
from wattq.runner import Archive, first_line

_PHASES = """examples:
  wattq phases build/demo/archive
  wattq phases build/demo/archive --run qwen-response-0 --json
  wattq phases --job 4711 --format csv > phases.csv

An interval is 95 %, on the scale of the device's own counter. A row without a number says why in its note."""
_RUNS = """examples:
  wattq runs build/demo/archive
  wattq runs --job 4711 --json"""
_SQL = """examples:
  wattq sql build/demo/archive "select phase, sum(energy_joules) from phase_energy group by phase"
  wattq sql "select * from gaps"        (archive of the daemon on this machine)

views: devices samples jobs runs phases phase_energy phase_energy_overlap run_energy run_spans gaps
clock sensors device_state evaluations ept"""
_REPORT = """examples:
  wattq report build/demo/archive --output report.html
  wattq report --run qwen-response-0 --output - > report.html"""


_EXAMPLES = """examples:
  wattq phases build/demo/archive
  wattq report build/demo/archive --output report.html
  wattq sql build/demo/archive 'select * from runs'"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> "None":  # type: ignore[override]  # as the base class, which never returns
        raise UserError(f"{self.prog}: {message}; `{self.prog} --help` has examples", code=2)


def _command(
    commands: "argparse._SubParsersAction[_Parser]", name: str, summary: str, examples: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "archive", nargs="?", metavar="ARCHIVE", help="folder that wattd wrote (default: this machine's)"
    )
    return parser


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--job", metavar="ID", help="only runs of this job")
    parser.add_argument("--run", metavar="NAME", help="only runs of this name or run_id")


def _add_form(parser: argparse.ArgumentParser) -> None:
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: table")
    forms.add_argument(
        "--json", dest="format", action="store_const", const="json", help="short for --format json"
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="wattq",
        description="What the phases of a training job cost in joules: asks an archive of wattd.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    phases = _command(commands, "phases", "energy per phase, with its interval", _PHASES)
    _add_choice(phases)
    phases.add_argument(
        "--estimator", choices=("auto", "overlap", "regression"), default="auto", help="how (default: auto)"
    )
    _add_form(phases)
    runs = _command(commands, "runs", "energy and tokens per run", _RUNS)
    _add_choice(runs)
    _add_form(runs)
    sql = _command(commands, "sql", "any query over the views", _SQL)
    sql.add_argument("query", metavar="SQL", help="the query")
    _add_form(sql)
    report = _command(commands, "report", "one HTML page that needs nothing else", _REPORT)
    _add_choice(report)
    report.add_argument(
        "--output", metavar="FILE", default="report.html", help="default: report.html; - for stdout"
    )
    return parser


def _warn(archive: Archive) -> None:
    for line in archive.warnings():
        print(f"wattq: {line}", file=sys.stderr)


def _nothing(archive: Archive, chosen: Chosen) -> UserError:
    if chosen != Chosen():
        known = [
            str(row[0])
            for row in archive.query("select distinct run from run_spans order by run limit 8").rows
        ]
        return UserError(f"no such run in {archive.path}; it has {', '.join(known) or 'no runs at all'}")
    return UserError(
        f"{archive.path} holds no run yet: tag phases with `kdclient`, or wait for the first marks"
    )


def _phases(args: argparse.Namespace) -> None:
    chosen = Chosen(args.job, args.run, args.estimator)
    with Archive(find_archive(args.archive)) as archive:
        answer = archive.query("select * from phase_energy order by rowid", chosen=chosen)
        records = answer.records()
        _warn(archive)
        if not records:
            raise _no_rows(archive, chosen)
        if args.format != "table":
            tables.print_answer(args.format, answer.columns, records)
            return
        tables.print_phases(records, archive.counters, archive.choices)


def _no_rows(archive: Archive, chosen: Chosen) -> UserError:
    if archive.query(f"select 1 from run_spans where {chosen.condition()} limit 1").rows:  # noqa: S608 quoted by Chosen
        return UserError(
            f"{archive.path} has runs but no device that measured them: `wattd probe` says what there is"
        )
    return _nothing(archive, chosen)


def _runs(args: argparse.Namespace) -> None:
    chosen = Chosen(args.job, args.run)
    with Archive(find_archive(args.archive)) as archive:
        answer = archive.query(
            f"select * from run_energy where {chosen.condition()} order by run, run_id",  # noqa: S608 quoted by Chosen
            chosen=chosen,
        )
        _warn(archive)
        if not answer.rows:
            raise _nothing(archive, chosen)
        records = answer.records()
        shown = [name for name in answer.columns if any(record[name] is not None for record in records)]
        tables.print_answer(args.format, shown if args.format == "table" else answer.columns, records)


def _sql(args: argparse.Namespace) -> None:
    with Archive(find_archive(args.archive)) as archive:
        try:
            answer = archive.query(args.query)
        except duckdb.Error as error:
            raise UserError(f"SQL: {_position(error)}") from error
        _warn(archive)
        tables.print_answer(args.format, answer.columns, answer.records())


def _position(error: duckdb.Error) -> str:
    """Returns an SQL error as one line, with the place that its caret shows."""
    lines = str(error).splitlines()
    for upper, lower in pairwise(lines):
        if lower.strip() and not lower.strip().strip("^") and upper.startswith("LINE "):
            row, _, text = upper.partition(": ")
            column = max(lower.index("^") - len(row) - 2, 0)
            return f"{first_line(error)} ({row.lower()}, at: {text[column:][:40].strip()})"
    return first_line(error)


def _report(args: argparse.Namespace) -> None:
    from wattq.report import write_report  # noqa: PLC0415 jinja2 only where a page is made

    chosen = Chosen(args.job, args.run)
    with Archive(find_archive(args.archive)) as archive:
        page = write_report(archive, chosen)
        _warn(archive)
        if page is None:
            raise _no_rows(archive, chosen)
    if args.output == "-":
        sys.stdout.write(page)
        return
    output = Path(args.output)
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write {output}: {error.strerror or error}; choose another --output"
        ) from error
    print(output)


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "phases": _phases,
    "runs": _runs,
    "sql": _sql,
    "report": _report,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 (failed) or 2 (usage)."""
    parser = _parser()
    try:
        args = parser.parse_args(arguments)
        if args.command is None:
            parser.print_help()
            return 0
        _COMMANDS[args.command](args)
        sys.stdout.flush()
    except UserError as error:
        print(f"wattq: {error}" if not str(error).startswith("wattq") else str(error), file=sys.stderr)
        return error.code
    except duckdb.Error as error:
        print(f"wattq: {first_line(error)}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (head, less) has had enough; Python must not complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
