"""The randomness of a workload: one independent stream per component, all from one seed.

Stream i is child i of `numpy.random.SeedSequence(seed).spawn(...)`. A component draws from its own
stream only, so changing the rate of arrivals does not change the lengths, and so on.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Components in spawn order. Append only: renumbering would change every workload."""

    ARRIVALS = 0
    PROMPT_LENGTHS = 1  # synthetic prompts, questions after a shared prefix, user messages
    OUTPUT_LENGTHS = 2
    GROUPS = 3
    THINK_TIMES = 4
    ABORTS = 5
    SYSTEM_PROMPT_LENGTHS = 6
    TURNS = 7
    PRIORITIES = 8
    FIRST_PROMPT_LENGTHS = 9
    TENANTS = 10
    PROMPT_IDS = 11  # token ids of prompts that share no text, for an engine


def generator(seed: int, stream: Stream, *part: int) -> np.random.Generator:
    """A fresh generator at the start of a component's stream, or of a part of it.

    `seed` is at least 0. Parts of a stream are independent of each other and of the whole.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(int(stream), *part))
    return np.random.Generator(np.random.PCG64(sequence))
