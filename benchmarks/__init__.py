"""Measurements: ratios in one alternating run, so that the machine's mood cancels out."""
