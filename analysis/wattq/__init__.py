"""wattq."""
