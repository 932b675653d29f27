"""The scenario's types: defaults, limits, and what a loaded scenario keeps."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from scenario_texts import BASE, changed, underlined, write

from engine.core.config import SchedulerConfig
from engine.core.dtypes import DTYPE_BYTES
from workbench.scenario.errors import ScenarioErrors
from workbench.scenario.schema import (
    SLO_PRESETS,
    FixedLength,
    LognormalLength,
    Model,
    Pool,
    Scenario,
    Scheduler,
    Slo,
    UniformLength,
    ZipfLength,
)
from workbench.scenario.shape import choices, keys_of
from workbench.scenario.source import canonical_json, load_scenario


def test_a_short_scenario_is_enough(tmp_path: Path) -> None:
    """Twelve lines define a run: one mixed replica and the scheduler's defaults fill the rest."""
    scenario = load_scenario(write(tmp_path, BASE)).scenario
    assert len(BASE.splitlines()) == 12
    assert [(pool.role, pool.replicas) for pool in scenario.deployment.pools] == [("mixed", 1)]
    assert (scenario.seed, scenario.too_long, scenario.slo) == (0, "reject", None)
    assert scenario.workload.max_tokens == "output_len"


def test_defaults_are_those_of_the_scheduler() -> None:
    """A key that the scenario shares with SchedulerConfig has the same default there."""
    config = SchedulerConfig(num_pages=1, max_model_len=1)
    for part in (Pool(), Scheduler()):
        for name in type(part).model_fields:
            if name in {"num_pages", "prefix_cache", "cuda_graph_batch_sizes"}:
                continue  # what memory holds, a group of keys, what depends on another key
            if hasattr(config, name):
                assert getattr(part, name) == getattr(config, name), name


def test_every_number_format_of_the_core_can_be_named() -> None:
    """weight_dtype and kv_dtype offer exactly the formats whose size is known."""
    for key in ("weight_dtype", "kv_dtype"):
        assert set(choices(keys_of(Model)[key])) == set(DTYPE_BYTES)


def test_names_are_found_in_any_case_and_kept_as_the_card_spells_them(tmp_path: Path) -> None:
    """`llama-3.1-8b` and `H200` mean the shipped card and GPU."""
    text = changed("Llama-3.1-8B", "llama-3.1-8b").replace("h200", "H200")
    scenario = load_scenario(write(tmp_path, text)).scenario
    assert (scenario.model.name, scenario.hardware.gpu) == ("Llama-3.1-8B", "h200")


@pytest.mark.parametrize(
    ("length", "bounds"),
    [
        (FixedLength(kind="fixed", value=7), (7, 7)),
        (UniformLength(kind="uniform", min=2, max=9), (2, 9)),
        (LognormalLength(kind="lognormal", mean=5, std_dev=2, max=9), (1, 9)),
        (ZipfLength(kind="zipf", alpha=1.1, max=9), (1, 9)),
    ],
)
def test_every_length_knows_its_bounds(length: FixedLength, bounds: tuple[int, int]) -> None:
    """The smallest and largest length follow from the distribution."""
    assert length.bounds == bounds


def test_whole_numbers_may_be_written_in_scientific_notation(tmp_path: Path) -> None:
    """`1e3` and `1_000` are the integer 1000; `1.5` is none."""
    for written in ("1e3", "1_000", "1000", "0x3e8"):
        text = changed("kind: synthetic", f"kind: synthetic\n  num_requests: {written}")
        count = load_scenario(write(tmp_path, text)).scenario.workload.num_requests
        assert (count, type(count)) == (1000, int)


@pytest.mark.parametrize(
    ("running", "sizes"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (5, (1, 2, 4, 5)),
        (32, (1, 2, 4, 8, 16, 24, 32)),
    ],
)
def test_graph_sizes_cover_every_batch(running: int, sizes: tuple[int, ...]) -> None:
    """The default CUDA Graph sizes end at the most requests that can decode."""
    assert Pool(max_running_requests=running).cuda_graph_batch_sizes == sizes
    assert Pool(cuda_graph_batch_sizes=()).cuda_graph_batch_sizes == ()


def test_presets_and_own_limits() -> None:
    """A preset gives TTFT and TPOT limits, and a limit of one's own goes before it."""
    assert Slo(preset="llama3.1-8b").limits_ms() == {"ttft": 2000.0, "tpot": 100.0}
    assert Slo(preset="llama3.1-8b", tpot_ms=7.0, e2el_ms=9.0).limits_ms() == {
        "ttft": 2000.0, "tpot": 7.0, "e2el": 9.0,
    }  # fmt: skip
    assert set(choices(keys_of(Slo)["preset"])) == set(SLO_PRESETS)


def test_a_scenario_does_not_change_after_loading(tmp_path: Path) -> None:
    """Assigning to a loaded scenario fails."""
    scenario = load_scenario(write(tmp_path, BASE)).scenario
    with pytest.raises(ValidationError):
        scenario.seed = 3


def test_the_resolved_data_is_the_same_scenario(tmp_path: Path) -> None:
    """`resolved` holds every key, is plain JSON, and validates to an equal scenario."""
    loaded = load_scenario(write(tmp_path, BASE))
    assert set(loaded.resolved) == set(keys_of(Scenario))
    again = json.loads(json.dumps(loaded.resolved))
    assert Scenario.model_validate(again) == loaded.scenario


def test_the_hash_is_of_the_meaning_not_of_the_text(tmp_path: Path) -> None:
    """Comments, order, shorthands and spelt-out defaults leave the hash alone; values change it."""
    first = load_scenario(write(tmp_path, BASE))
    text = "# a comment\n" + changed("prompt_len: 512", "prompt_len: {value: 512, kind: fixed}")
    same = load_scenario(write(tmp_path, text + "seed: 0\n"))
    other = load_scenario(write(tmp_path, text + "seed: 1\n"))
    assert first.sha256 == same.sha256 != other.sha256
    assert first.sha256 == hashlib.sha256(canonical_json(first.resolved)).hexdigest()


def test_later_stages_place_their_errors(tmp_path: Path) -> None:
    """`LoadedScenario.error` points at a value, or at the closest key around one left out."""
    text = BASE + "deployment:\n  pools:\n    - {page_size: 64}\n"
    loaded = load_scenario(write(tmp_path, text))
    error = loaded.error(("deployment", "pools", 0, "page_size"), "S201", "too large", "1 + 1\n= 2")
    assert (error.line, error.column, underlined(error)) == (15, 19, "64")
    assert str(ScenarioErrors([error])).endswith("   = help: 1 + 1\n           = 2")
    absent = loaded.error(("deployment", "pools", 0, "num_pages"), "S201", "none left")
    assert (absent.line, underlined(absent)) == (15, "{page_size: 64}")
    assert loaded.error(("scheduler", "mode"), "S201", "m").line == 1
    overridden = load_scenario(write(tmp_path, text), ["deployment.pools.0.page_size=32"])
    error = overridden.error(("deployment", "pools", 0, "page_size"), "S201", "too large")
    assert "--> --set deployment.pools.0.page_size=32" in str(error)


def test_the_types_import_no_more_than_pydantic() -> None:
    """The types load neither YAML nor numpy, so `workbench schema` is quick."""
    code = (
        "import sys, workbench.scenario.schema\n"
        "heavy = {'numpy', 'ruamel', 'simpy', 'torch', 'textual', 'matplotlib'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
