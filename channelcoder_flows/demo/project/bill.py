"""Splits a bill."""


def split(cents: int, people: int) -> list[int]:
    """Return what each of `people` pays, in cents."""
    return [cents // people] * people
