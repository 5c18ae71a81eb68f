"""Answers from an archive of wattd: SQL views, energy per phase, and the report."""

__all__: list[str] = []
