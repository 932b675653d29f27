"""Every driver takes the prefix cache that was measured fastest, and none compiles to find out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_runs import SMALL, play
from fake_language import engine as fake_engine
from test_parity import parity
from typer.testing import CliRunner

from engine import LLM, SamplingParams
from engine.core.config import SchedulerConfig
from engine.core.events import Segment
from engine.core.radix_cache import RadixCache
from engine.core.scheduler import Scheduler
from engine.native import build, cache_choice
from engine.native.cache_choice import choose, figures_with, inject, put_native, speed_file
from workbench.cli import app
from workbench.running.simulate import prepare
from workbench.scenario.source import load_scenario

FASTER = {"native_us": 1.0, "python_us": 2.0}
SLOWER = {"native_us": 3.0, "python_us": 2.0}


@pytest.fixture
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Builds are on, and figures are kept in a folder of our own, empty at first."""
    monkeypatch.setenv("WORKBENCH_NATIVE", "1")
    folder = tmp_path / "figures"
    folder.mkdir()
    monkeypatch.setattr(cache_choice, "builds_dir", lambda: folder)
    return folder


@pytest.fixture
def built(figures: Path, prefix_cache_builds: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The figures' folder; the extension is built."""
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(prefix_cache_builds))
    return figures


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Scheduler]:
    """The schedulers that drivers make from now on."""
    found: list[Scheduler] = []

    def make(*arguments: Any, **named: Any) -> Scheduler:
        found.append(Scheduler(*arguments, **named))
        return found[-1]

    for module in ("workbench.running.engine_driver", "workbench.running.parity", "simulator.world",
                   "engine.runtime.local_engine"):  # fmt: skip
        monkeypatch.setattr(f"{module}.Scheduler", make)
    return found


def scheduler(**settings: Any) -> Scheduler:
    return Scheduler(SchedulerConfig(
        num_pages=100, max_model_len=512, max_num_batched_tokens=512, max_running_requests=8,
        **settings,
    ))  # fmt: skip


def write(figures: object) -> None:
    speed_file().write_text(json.dumps(figures))


# ---- the choice ----------------------------------------------------------------------------------


def test_only_a_faster_build_is_chosen(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must be built, measured here for that use, and faster by more than chance; and be on."""
    assert "has not been measured" in choose("engine").reason
    write({"engine": FASTER, "simulation": SLOWER})
    assert choose("engine").native
    assert choose("engine").reason.endswith(": 1.0 us of CPU a request, 2.0 with Python's")
    assert not choose("simulation").native
    assert "3.0 us of CPU a request, 2.0 with Python's, which is not 15%" in (
        choose("simulation").reason
    )
    assert inject(scheduler(), "engine")
    assert not inject(scheduler(), "simulation")
    write({"engine": {"native_us": 1.72, "python_us": 2.0}})
    assert not choose("engine").native
    write({"engine": FASTER})
    monkeypatch.setenv("WORKBENCH_NATIVE", "0")
    assert "WORKBENCH_NATIVE=0" in choose("engine").reason
    assert not inject(scheduler(), "engine")
    monkeypatch.setenv("WORKBENCH_NATIVE", "1")
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(tmp_path))
    assert "is not built" in choose("engine").reason
    assert not inject(scheduler(), "engine")


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"engine": 3}', '{"engine": {"native_us": "1", "python_us": 2}}',
     '{"engine": {"native_us": NaN, "python_us": 2}}', '{"native_us": 1.0, "python_us": 2.0}',
     '{"engine": {"native_us": -1, "python_us": 2}}'],
)  # fmt: skip
def test_figures_that_make_no_sense_are_none(text: str) -> None:
    """A damaged file, or one of an older version, is as good as no measurement."""
    speed_file().write_text(text)
    assert not choose("engine").native
    assert "has not been measured" in choose("engine").reason


@pytest.mark.usefixtures("built")
def test_other_sources_need_another_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of a cache that has been changed since say nothing."""
    write({"engine": FASTER})
    other = tmp_path / "other" / "engine" / "core" / "radix_tree.py"
    other.parent.mkdir(parents=True)
    other.write_text("# a faster one\n")
    monkeypatch.setattr(cache_choice, "ROOT", tmp_path / "other")
    assert "has not been measured" in choose("engine").reason


def test_a_compiled_core_keeps_its_own(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so with its own figures, which do not overwrite those of Python."""
    write({"engine": FASTER})
    monkeypatch.setattr(cache_choice, "active_build", lambda: built)
    assert choose("engine").reason == "the compiled core's own, which takes no other"
    figures = figures_with("engine", 1.5, 0.8)
    assert figures["engine"] == {"native_us": 1.5, "python_us": 2.0, "compiled_us": 0.8}
    write(figures)
    assert choose("engine").reason.endswith(": 0.8 us of CPU a request, 1.5 with the C++ one")
    assert not inject(scheduler(), "engine")
    assert not put_native(scheduler())


@pytest.mark.usefixtures("built")
def test_nothing_is_put_where_there_is_no_cache_or_one_in_use() -> None:
    """A scheduler without a prefix cache gets none, and one that has served keeps its own."""
    assert not put_native(scheduler(prefix_cache=False))
    served = scheduler()
    served.kv.cache.match(np.ones(1, np.int32))
    with pytest.raises(ValueError, match="before it serves"):
        put_native(served)


@pytest.fixture
def damaged(figures: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library that was measured to be faster, and is none."""
    del figures
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(tmp_path))
    write({"engine": FASTER})
    extension = build.PREFIX_CACHE
    library = tmp_path / f"{extension.name}-{build.key_of(extension)}" / extension.file_name
    library.parent.mkdir()
    library.write_bytes(b"no library")
    return library


@pytest.mark.usefixtures("damaged")
def test_a_library_that_does_not_load_is_left_out_with_a_warning() -> None:
    """The run goes on with Python's cache, and is told how to get the other one back."""
    left_out = "C\\+\\+ is left out: .*; `workbench native` builds it again"
    with pytest.warns(UserWarning, match=left_out):
        assert not inject(scheduler(), "engine")


def test_a_damaged_library_is_not_told_as_chosen(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run would refuse it, however fast it was."""
    choice = choose("engine")
    assert not choice.native
    assert choice.reason == (
        f"Python's: {damaged} is not whole; `workbench native` builds it again"
    )
    monkeypatch.setattr(cache_choice, "is_whole", lambda _: True)
    assert choose("engine").native


# ---- the drivers ---------------------------------------------------------------------------------


def llm() -> None:
    engine = fake_engine()
    with LLM(engine) as model:
        model.generate([[1, 2, 3]], SamplingParams(max_tokens=3))


def run() -> None:
    play("quickstart", *SMALL)


def simulation() -> None:
    few = ["workload.num_requests=5", "load.warmup_requests=0"]
    prepare(load_scenario("quickstart", few), "steps").run()


def check_parity() -> None:
    parity(play("quickstart", *SMALL))


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("drive", "uses"),
    [(llm, "engine"), (run, "engine"), (simulation, "simulation"),
     (check_parity, "engine simulation")],
)  # fmt: skip
def test_every_driver_asks(drive: Callable[[], None], uses: str, made: list[Scheduler]) -> None:
    """`LLM` (and so `AsyncLLM` and chat), `run`, simulations, parity: each by its own figures."""
    for figures in (
        {"engine": FASTER, "simulation": SLOWER},
        {"engine": SLOWER, "simulation": FASTER},
    ):
        made.clear()
        write(figures)
        drive()
        native = [type(each.kv.cache) is not RadixCache for each in made]
        assert native == [figures[use] is FASTER for use in uses.split()]


@pytest.mark.usefixtures("figures")
@pytest.mark.parametrize("drive", [llm, run, simulation, check_parity])
def test_no_driver_compiles(
    drive: Callable[[], None],
    made: list[Scheduler],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it is not built any more, it is not built again, however fast it was."""
    write({"engine": FASTER, "simulation": FASTER})
    monkeypatch.setenv("WORKBENCH_NATIVE_DIR", str(tmp_path / "native"))
    drive()
    assert made
    assert all(type(each.kv.cache) is RadixCache for each in made)
    assert not (tmp_path / "native").exists()


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("name", "size"),
    [("prefix_cache_chat", "num_conversations=20"), ("routers", "num_requests=60"),
     ("kv_pressure", "num_requests=60")],
)  # fmt: skip
def test_a_simulation_is_the_same_with_either(name: str, size: str) -> None:
    """Down to every page, radix event and time."""
    few = [f"workload.{size}", "load.warmup_requests=0"]
    tables = []
    for equip in (put_native, lambda _: None):
        segments: list[Segment] = []
        prepare(load_scenario(name, few), "pages").run([segments.append], equip=equip)
        tables.append(segments)
    native, python = tables
    assert len(native) == len(python) > 0
    for ours, theirs in zip(native, python, strict=True):
        np.testing.assert_equal(ours, theirs)


# ---- the command ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("built")
def test_building_ahead_measures_and_says_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """`workbench native --extensions-only` writes figures for both uses; `version` repeats why."""
    monkeypatch.setattr(shutil, "which", lambda name, which=shutil.which: (
        None if name == "nvcc" else which(name)
    ))  # fmt: skip
    monkeypatch.setattr("workbench.native_extensions._ROUNDS", 1)
    result = CliRunner().invoke(app, ["native", "--extensions-only"])
    assert result.exit_code == 0, result.output
    assert "workbench_ops_cuda: left out, nvcc is not installed" in result.output
    written = json.loads(speed_file().read_text())
    for use in ("engine", "simulation"):
        assert set(written[use]) == {"native_us", "python_us"}
        assert choose(use).reason in result.output
        assert choose(use).reason in CliRunner().invoke(app, ["version"]).output
