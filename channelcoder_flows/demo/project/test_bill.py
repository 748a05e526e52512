"""A bill is paid in full."""

import unittest

from bill import split


class SplitTest(unittest.TestCase):
    """What the guests pay together, and each of them."""

    def test_even(self) -> None:
        """Who can pay the same pays the same."""
        self.assertEqual(split(900, 3), [300, 300, 300])

    def test_nothing_is_lost(self) -> None:
        """The parts add up to the bill."""
        self.assertEqual(sum(split(1000, 3)), 1000)


if __name__ == "__main__":
    unittest.main()
