"""What may come from outside in place of what was expected, and what reading it may cost."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

from hypothesis import strategies as st

MOST_BYTES = 64 << 20  # no refusal of a small file may need more memory
DEEP = "[" * 200_000
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from([2**63, -(2**63) - 1, 10**40, 1e308]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)  # fmt: skip


def bounded(read: Callable[[], object], *allowed: type[Exception]) -> None:
    """Read or refuse, without a crash and without much memory."""
    message = "read"
    tracemalloc.start()
    try:
        read()
    except allowed as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert 0 < len(message) < 20_000
    assert peak < MOST_BYTES
