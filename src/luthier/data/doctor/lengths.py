"""How long the examples are: percentiles, and a histogram by powers of two, which suits lengths from ten to a hundred thousand."""

from __future__ import annotations

from array import array


class Lengths:
    """Lengths of all examples, 4 bytes each.

    Args:
        unit: what they are counted in, `characters` or `tokens`.
    """

    def __init__(self, unit: str = "characters") -> None:
        self.unit = unit
        self.values = array("I")

    def add(self, length: int) -> None:
        """Take note of one."""
        self.values.append(min(length, 2**32 - 1))

    def percentiles(self, shares: tuple[int, ...] = (0, 50, 90, 99, 100)) -> dict[int, int]:
        """Percentile → length; empty when there are none."""
        ordered = sorted(self.values)
        return {share: ordered[round((len(ordered) - 1) * share / 100)] for share in shares} if ordered else {}

    def bins(self) -> list[tuple[int, int, int]]:
        """(least, most, count) for each power of two between the shortest and the longest."""
        counts: dict[int, int] = {}
        for value in self.values:
            counts[value.bit_length()] = counts.get(value.bit_length(), 0) + 1
        if not counts:
            return []
        return [(1 << n >> 1, (1 << n) - 1, counts.get(n, 0)) for n in range(min(counts), max(counts) + 1)]
