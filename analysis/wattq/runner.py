"""Opens an archive: staging, the energy of phases, and the views of analysis/sql above them."""

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import duckdb

from wattq import staging
from wattq.errors import UserError
from wattq.estimate import estimate
from wattq.loading import Chosen
from wattq.rows import COLUMNS
from wattq.segments import Segment, list_files, read_header

# Each view stands on those before it.
VIEWS = (
    "devices",
    "samples",
    "clock",
    "gaps",
    "sensors",
    "device_state",
    "evaluations",
    "ept",
    "jobs",
    "run_spans",
    "runs",
    "phases",
    "phase_energy_overlap",
    "run_energy",
)
# Views that need the estimator's answer.
_ENERGY = re.compile(r"\b(phase_energy|run_energy)\b", re.IGNORECASE)
# A file may be compressed under our hands: look again, this often.
_ATTEMPTS = 3


def sql_folder() -> Path:
    """Returns the folder of the views: inside the installed package, or at the top of a checkout."""
    here = Path(__file__).resolve().parent
    return here / "sql" if (here / "sql").is_dir() else here.parent / "sql"


@dataclass
class Answer:
    """The result of a query.

    Attributes:
        columns: Names of the columns.
        rows: The rows.
    """

    columns: list[str]
    rows: list[tuple[Any, ...]]

    def records(self) -> list[dict[str, Any]]:
        """Returns the rows as dictionaries."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class Archive:
    """An open archive.

    Args:
        path: Folder of the archive.

    Raises:
        UserError: There is nothing to read, or it is of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.foreign_files = 0
        self.torn_event_lines = 0
        self.torn_sample_lines = 0
        self.segments: list[Segment] = []
        self.counters: dict[tuple[str, str, str], float] = {}
        self.choices: dict[tuple[str, str, str], str] = {}
        self._estimated: Chosen | None = None
        self._wanted = Chosen()
        self._spill = tempfile.TemporaryDirectory(prefix="wattq-")
        self.connection = duckdb.connect(
            config={
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "memory_limit": "1GB",
                "threads": str(os.cpu_count() or 1),
                "temp_directory": self._spill.name,
                "preserve_insertion_order": "false",
            }
        )
        try:
            self._retry(self._register)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes DuckDB and removes what it spilled."""
        self.connection.close()
        self._spill.cleanup()

    def _retry(self, work: Any) -> Any:
        for attempt in range(_ATTEMPTS):
            try:
                return work()
            except (duckdb.IOException, OSError) as error:
                if attempt + 1 == _ATTEMPTS:
                    raise UserError(f"{self.path}: {first_line(error)}") from error
                if self.segments:
                    self._register()
        return None

    def _register(self) -> None:
        self.segments = []
        files = list_files(self.path)
        headers = [read_header(self.connection, path) for path in files]
        self.segments = [header for header in headers if header is not None]
        self.foreign_files = len(files) - len(self.segments)
        if not self.segments:
            raise UserError(f"{self.path} holds no readable segment: is wattd still starting?")
        self.torn_event_lines = staging.register(self.connection, self.segments)
        kinds = ", ".join(f'"{name}" {kind.lower()}' for name, kind in COLUMNS.items())
        self.connection.execute(f"create or replace table phase_energy ({kinds})")
        self._estimated = None
        for view in VIEWS:
            text = (sql_folder() / f"{view}.sql").read_text(encoding="utf-8")
            self.connection.execute(f"create or replace view {view} as\n{text}")

    def estimate(self, chosen: Chosen) -> None:
        """Fills `phase_energy` for the chosen runs, unless it already holds them."""
        self._wanted = chosen
        if self._estimated == chosen:
            return
        self.connection.execute("delete from phase_energy")
        answer = estimate(self.connection, self.segments, chosen)
        self.torn_sample_lines, self.counters, self.choices = (
            answer.torn_lines,
            answer.counters,
            answer.choices,
        )
        if answer.rows:
            places = ", ".join("?" * len(COLUMNS))
            values = [[row[name] for name in COLUMNS] for row in answer.rows]
            self.connection.executemany(f"insert into phase_energy values ({places})", values)  # noqa: S608 marks
        self._estimated = chosen

    def query(self, sql: str, parameters: Sequence[Any] = (), chosen: Chosen | None = None) -> Answer:
        """Runs a query over the views.

        Args:
            sql: The query.
            parameters: Values for its question marks.
            chosen: Which runs `phase_energy` has to hold; when left out those of the last query, else all.

        Raises:
            UserError: The query is wrong; the message has the position.
        """
        if not sql.strip(" \n\t;"):
            raise UserError("there is no SQL: give a query, as in wattq sql ARCHIVE 'select * from runs'", 2)

        def work() -> Answer:
            if _ENERGY.search(sql):
                self.estimate(chosen or self._wanted)
            done = self.connection.execute(sql, parameters)
            columns = [column[0] for column in done.description or []]
            return Answer(columns, done.fetchall())

        answer: Answer = self._retry(work)
        return answer

    def warnings(self) -> list[str]:
        """Returns what a reader should know about the evidence, one line each."""
        torn = self.torn_event_lines + self.torn_sample_lines
        found = []
        if torn:
            lines = "line" if torn == 1 else "lines"
            found.append(f"{torn} {lines} could not be read (torn by a crash, or still being written)")
        if self.foreign_files:
            files = "file does" if self.foreign_files == 1 else "files do"
            found.append(f"{self.foreign_files} {files} not begin as a segment and was left out")
        return found


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
