"""The prefix cache in C++ is timed on equal answers, and says what it takes to build it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.native import build
from engine.native.cache_speed import measure_cache_speed
from engine.native.prefix_cache import native_cache

pytestmark = pytest.mark.usefixtures("prefix_cache_builds")


def test_both_caches_are_timed_on_the_same_answers() -> None:
    """The comparison that decides has both caches give equal answers, in some time."""
    speed = measure_cache_speed()
    assert speed.equal
    assert min(speed.python_us, speed.native_us) > 0


def test_without_a_compiler_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot be built the error names what is missing."""
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.NativeUnavailableError, match=r"g\+\+ is not installed; it takes pip"):
        native_cache(16)
