"""`workbench fidelity`: what it says of a simulation, from runs of the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import invoke
from test_calibrate import calibrated, true_ns

from simulator.calibrated import CalibratedCostModel
from simulator.cost_model import StepShape
from workbench.fidelity import CPU_LOADS, GPU_LOADS, error_of, step_errors, table_lines
from workbench.scenario_source import load_scenario


def result(simulated: float | None, *engine: float | None) -> dict[str, Any]:
    return {"engine": [{"mean_ttft_ms": value} for value in engine],
            "simulated": {"mean_ttft_ms": simulated}}  # fmt: skip


@pytest.mark.parametrize(
    ("numbers", "error", "spread"),
    [
        ((11.0, 9.0, 11.0), 10.0, 10.0),
        ((9.0, 10.0), -10.0, 0.0),
        ((0.0, 0.0, 0.0), None, 0.0),
        ((3.0, 0.0), float("inf"), 0.0),
        ((None, 5.0), None, None),
        ((5.0, None), None, None),
    ],
)
def test_an_error_stands_beside_the_engines_spread(
    numbers: tuple[float | None, ...], error: float | None, spread: float | None
) -> None:
    """Signed, of the mean of the runs; nothing where there is nothing to compare."""
    assert error_of(result(*numbers), "mean_ttft_ms") == {"error": error, "spread": spread}


def test_errors_of_steps_by_region(tmp_path: Path) -> None:
    """Steps that take a tenth longer than predicted are 9.1 % under it, in every region."""
    done, _ = calibrated(tmp_path)
    shapes = [
        StepShape(decode_requests=4, decode_tokens=4, decode_context=4000, decode_max_context=1000,
                  sampled_tokens=4, graph_batch=4),
        StepShape(prefill_tokens=200, prefill_requests=1, prefill_pairs=20_100, sampled_tokens=1),
        StepShape(prefill_tokens=200, prefill_requests=1, prefill_pairs=20_100, decode_requests=4,
                  decode_tokens=4, decode_context=4000, decode_max_context=1000, sampled_tokens=5),
    ]  # fmt: skip
    names = [name for name in StepShape._fields if name != "active_experts"]
    steps = {name: np.array([getattr(shape, name) for shape in shapes]) for name in names}
    steps["gpu_ns"] = np.array([round(1.1 * true_ns(shape)) for shape in shapes])
    errors = step_errors(CalibratedCostModel(done.profile), [steps, steps])
    assert {region: numbers["count"] for region, numbers in errors.items()} == {
        "decode": 2, "prefill": 2, "mixed": 2, "all": 6,
    }  # fmt: skip
    for numbers in errors.values():
        assert numbers["median"] == pytest.approx(100 / 11, abs=1.5)
        assert numbers["bias"] == pytest.approx(-100 / 11, abs=1.5)


@pytest.mark.parametrize(
    ("scenario", "loads"), [("quickstart", GPU_LOADS), ("engine_on_cpu", CPU_LOADS)]
)
def test_every_load_is_a_scenario(scenario: str, loads: Any) -> None:
    """All settings are understood, and no two loads go by the same name."""
    assert len({load.name for load in loads}) == len(loads)
    for load in loads:
        settings = [text.replace("{rate}", "5") for text in load.settings]
        load_scenario(scenario, [*settings, "load.warmup_requests=0"])
        assert ("{rate}" in "".join(load.settings)) == (load.share > 0)


def test_the_suite_on_a_cpu(tmp_path: Path) -> None:
    """The real engine: a file a load, decisions all equal, and nothing is measured twice."""
    profiles, out = tmp_path / "profiles", tmp_path / "fidelity"
    made = invoke("calibrate", "--cpu", "--minutes", "0.1", "--output-dir", str(profiles))
    assert made.exit_code == 0, made.output
    (profile,) = profiles.glob("*.json")
    command = ("fidelity", str(profile), "--cpu", "--repeats", "1", "--output-dir", str(out))
    first = invoke(*command)
    assert first.exit_code == 0, first.output
    found = [json.loads(path.read_bytes()) for path in sorted(out.iterdir())]
    assert {each["load"] for each in found} == {load.name for load in CPU_LOADS}
    for each in found:
        assert each["parity"].startswith("all ")
        assert each["steps"]["all"]["count"] > 20
        assert each["engine"][0]["output_throughput"] > 0
        # Calibrated to this machine: far nearer than a formula for an H200 could be.
        own, analytic = (error_of(each, "mean_tpot_ms", whose)["error"]
                         for whose in ("simulated", "analytic"))  # fmt: skip
        assert abs(own or 0) < 60 < abs(analytic or 0)
    stamps = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = invoke(*command)
    assert again.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == stamps
    other = json.loads(profile.read_bytes())
    other["identity"]["page_size"] = 64
    profile.write_text(json.dumps(other), encoding="utf-8")
    result = invoke(*command)  # what is there is of another profile, and this one of no engine here
    assert result.exit_code == 1
    assert "is of page_size 64, not 16" in result.stderr
    assert table_lines(found)[0].startswith("error, %")
