"""Counter-based randomness: a random number as a pure function of what it is for, so that nothing has to be remembered or replayed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mix64(*words: int | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A well-mixed 64-bit hash of integers or integer arrays (the SplitMix64 finaliser over each word in turn)."""
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            state = state + np.asarray(word, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state
