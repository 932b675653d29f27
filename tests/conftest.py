"""Tests run the sources as Python: they replace parts of them, which machine code does not allow.

`test_native.py` compares the two. Triton kernels run in Triton's interpreter, unless the tests are
told to use a GPU (`WORKBENCH_TEST_DEVICE=cuda`); the variable must be set before a kernel is
decorated, hence here. Step times come from the analytic model, whichever profiles ship.
"""

import importlib.util
import os
from pathlib import Path

from hypothesis import settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

os.environ["WORKBENCH_NATIVE"] = "0"
if os.environ.get("WORKBENCH_TEST_DEVICE", "cpu") == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure() -> None:
    """Before any test is collected, since some simulate what they are parametrized with."""
    from simulator import shipped_profiles

    shipped_profiles.FOLDER = Path(__file__).with_name("no_shipped_profiles")


# Triton exists for Linux only. Elsewhere the engine cannot be imported, and its tests are left out.
if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = [
        "test_cli_run_real.py", "test_device_parts.py", "test_dummy_weights.py",
        "test_engine_gpu.py", "test_engine_parity.py", "test_kernel_*.py",
        "test_memory_measurement.py", "test_model_runner.py", "test_rope.py", "test_weights.py",
    ]  # fmt: skip
