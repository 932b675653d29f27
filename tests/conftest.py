"""Tests run the sources as Python: they replace parts of them, which machine code does not allow.

`test_native.py` compares the two. Triton kernels run in Triton's interpreter, unless the tests are
told to use a GPU (`WORKBENCH_TEST_DEVICE=cuda`); the variable must be set before a kernel is
decorated, hence here. Step times come from the analytic model, whichever profiles ship.
"""

import importlib.util
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from measured_loads import Place

    from workbench.tui.opened_run import OpenedRun

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


@pytest.fixture(autouse=True)
def own_numbers(request: pytest.FixtureRequest) -> None:
    """The random numbers of torch are those of the test, whichever ran before it."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(own_folder: Path) -> "OpenedRun":
    """A recorded run of 150 requests with all details, in the current folder."""
    from recorded_runs import recorded

    from workbench.tui.opened_run import OpenedRun

    del own_folder
    reader = recorded("workload.num_requests=150", "load.warmup_requests=0", detail="pages")
    return OpenedRun.recorded(reader.path)


@pytest.fixture
def place(tmp_path: Path) -> "Place":
    """Where loads are measured on a made-up H200, and judged."""
    from measured_loads import Place

    return Place(tmp_path)


@pytest.fixture(scope="module")
def prefix_cache_builds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of builds, with the prefix cache in C++, compiled once."""
    from native_builds import shared_builds

    from engine.native import prefix_cache

    if shutil.which("g++") is None:
        pytest.skip("no g++")
    folder = shared_builds(tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_NATIVE_DIR", str(folder))
        prefix_cache.native_module()
        yield folder


# Triton exists for Linux only. Elsewhere the engine cannot be imported, and its tests are left out.
if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = [
        "test_cli_profile.py", "test_cli_run_real.py", "test_device_parts.py",
        "test_dummy_weights.py", "test_engine_gpu.py", "test_engine_parity.py",
        "test_first_costs.py", "test_kernel_*.py", "test_memory_measurement.py",
        "test_model_runner.py", "test_op_ranges.py", "test_profile_gpu.py", "test_rope.py",
        "test_weights.py",
    ]  # fmt: skip
