"""Where tests build native code: once for all processes of a run of the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_builds(factory: pytest.TempPathFactory) -> Path:
    """A folder for builds that all workers of pytest-xdist see; or one that the caller names."""
    given = os.environ.get("WORKBENCH_TEST_BUILDS")
    if given:
        return Path(given)
    root = factory.getbasetemp()
    return (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "native-builds"
