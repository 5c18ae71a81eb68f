"""wattd: a per-node energy telemetry daemon."""
