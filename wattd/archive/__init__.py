"""The archive, version 1: how it is written, closed, mended and read back (docs/archive.md)."""

from wattd.archive.folder import Archive, BusyError
from wattd.archive.lines import body, second_body, tick_body
from wattd.archive.log import Log
from wattd.archive.recovery import LastCounter, LastSamples

__all__ = ["Archive", "BusyError", "LastCounter", "LastSamples", "Log", "body", "second_body", "tick_body"]
