"""The wire contract, generated from proto/wattd/v1."""
