"""Finds the archive when the command does not name it."""

import os
import tomllib
from pathlib import Path

from wattq.errors import UserError

_CONFIG = "/etc/wattd/config.toml"


def _configured() -> Path | None:
    """Returns the archive that the daemon's configuration names."""
    named = os.environ.get("WATTD_CONFIG")
    config = Path(named or _CONFIG)
    if not config.is_file():
        if named:
            raise UserError(f"WATTD_CONFIG names {config}, which is not a file", code=2)
        return None
    try:
        text = config.read_text(encoding="utf-8")
        archive = tomllib.loads(text).get("archive")
    except PermissionError:
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            f"{config} cannot be read: {error}; name the archive in the command", code=2
        ) from error
    return Path(archive).expanduser() if isinstance(archive, str) else None


def find_archive(named: str | None) -> Path:
    """Returns the archive a command is about.

    Args:
        named: What the user named; `None`: the daemon's configuration says, else its default folder is it.

    Raises:
        UserError: There is none.
    """
    if named is not None:
        path = Path(named).expanduser()
        if not path.is_dir():
            raise UserError(f"no archive at {path}: name the folder that `wattd serve --archive` wrote")
        return path
    usual = Path("/var/lib/wattd") if os.geteuid() == 0 else Path.home() / ".local/state/wattd/archive"
    path = _configured() or usual
    if not path.is_dir():
        raise UserError(
            f"no archive at {path}, where wattd writes by default: name one, as in `wattq phases ARCHIVE`"
        )
    return path
