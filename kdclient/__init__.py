"""kdclient."""
