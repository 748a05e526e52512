"""Where a turn's process runs."""
