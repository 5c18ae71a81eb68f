"""Metrics, version 1: the families, the page, and how it is served."""

from wattd.metrics.families import Sources, families, shown_jobs
from wattd.metrics.http import MetricsServer
from wattd.metrics.page import Family, Page

__all__ = ["Family", "MetricsServer", "Page", "Sources", "families", "shown_jobs"]
