"""`workbench fidelity`: how a prediction is judged, and the real engine from end to end."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import calibrate_cpu, invoke
from cost_model_laws import check_decode_run
from made_up_engine import calibrated, true_ns

import simulator
from simulator.calibrated import CalibratedCostModel
from simulator.cost_model import StepFeatures, StepShape
from simulator.profile_file import read_profile
from workbench.cli.fidelity import _set_up
from workbench.fidelity.errors import FidelityError
from workbench.fidelity.goals import Score, score
from workbench.fidelity.loads import CPU_LOADS, GPU_LOADS, chosen
from workbench.fidelity.predict import Longer
from workbench.fidelity.step_errors import (
    errors_of_repeats,
    quantiles,
    spread,
    step_errors,
)
from workbench.fidelity.suite import open_suite
from workbench.running.profile_match import is_gpu
from workbench.scenario.source import load_scenario

SHIPPED = Path(simulator.__file__).with_name("profiles")

TRACE = Path(__file__).parent / "fixtures" / "traces" / "azure_2023.csv"
DECODE = StepShape(decode_requests=4, decode_tokens=4, decode_context=4000, decode_max_context=1000,
                   sampled_tokens=4, graph_batch=4)  # fmt: skip
PREFILL = StepShape(prefill_tokens=200, prefill_requests=1, prefill_pairs=20_100,
                    prefill_max_context=200, sampled_tokens=1)  # fmt: skip
MIXED = PREFILL._replace(decode_requests=4, decode_tokens=4, decode_context=4000,
                         decode_max_context=1000, sampled_tokens=5)  # fmt: skip


@pytest.mark.parametrize(
    ("predicted", "engine", "expected"),
    [
        (11.0, (9.0, 11.0), Score(10.0, 11.0, 10.0, 10.0, 10.0, True)),  # within the spread
        (9.0, (10.0,), Score(10.0, 9.0, -10.0, None, 3.0, False)),  # one run has no spread
        (9.0, (10.0, 10.0), Score(10.0, 9.0, -10.0, 0.0, 3.0, False)),
        (10.2, (10.0, None), Score(10.0, 10.2, pytest.approx(2), None, 3.0, True)),
        (0.0, (0.0, 0.0), Score(0.0, 0.0, 0.0, 0.0, 3.0, True)),
        (3.0, (0.0,), Score(0.0, 3.0, None, None, 3.0, False)),
        (None, (5.0,), Score(5.0, None, None, None)),
        (5.0, (None,), Score(None, 5.0, None, None)),
    ],
)
def test_an_error_is_judged_beside_the_engines_spread(
    predicted: float | None, engine: tuple[float | None, ...], expected: Score
) -> None:
    """Signed, of the mean of the runs; nothing where there is nothing to compare."""
    assert score("mean_ttft_ms", engine, predicted, 24) == expected


def test_a_high_percentile_needs_requests() -> None:
    """Of a few, the 99th is one request's luck: shown, not judged."""
    few, many = (score("p99_ttft_ms", (10.0,), 10.4, requests) for requests in (999, 1000))
    assert (few.error, few.reached) == (pytest.approx(4), None)
    assert (many.error, many.reached) == (pytest.approx(4), True)


def test_errors_of_steps_by_region(tmp_path: Path) -> None:
    """Steps that take a tenth longer than predicted are 9.1 % under it, in every region."""
    done, _ = calibrated(tmp_path)
    shapes = [DECODE, PREFILL, MIXED, StepShape()]  # a step of nothing is not asked about
    names = [name for name in StepShape._fields if name != "active_experts"]
    steps = {name: np.array([getattr(shape, name) for shape in shapes]) for name in names}
    steps["start_ns"] = 10**9 * np.arange(len(shapes))
    steps["plan_ns"] = steps["start_ns"] - 10**9  # none is the first after an idle time
    steps["gpu_ns"] = np.array([round(1.1 * true_ns(shape)) for shape in shapes])
    found = step_errors(CalibratedCostModel(done.profile), [steps, steps])
    numbers = {region: spread(errors) for region, errors in found.items()}
    assert {region: each["count"] for region, each in numbers.items()} == {
        "decode": 2, "prefill": 2, "mixed": 2, "all": 6,
    }  # fmt: skip
    for each in numbers.values():
        assert each["median"] == pytest.approx(100 / 11, abs=1.5)
        assert each["bias"] == pytest.approx(-100 / 11, abs=1.5)
    curve = quantiles(found["all"])
    assert len(curve) == 101
    assert curve == sorted(curve)
    assert spread(np.empty(0))["count"] == len(quantiles(np.empty(0))) == 0


def test_other_runs_tell_of_the_same_steps() -> None:
    """Each run by the mean of the others; only steps that are told from all others in each run."""
    long = MIXED._replace(decode_context=MIXED.decode_context + 1)  # the same, in another run
    other = MIXED._replace(decode_context=2 * MIXED.decode_context, decode_requests=2)

    def run(*steps: tuple[StepShape, int]) -> dict[str, np.ndarray]:
        names = [name for name in StepShape._fields if name != "active_experts"]
        columns = {name: np.array([getattr(shape, name) for shape, _ in steps]) for name in names}
        return columns | {"gpu_ns": np.array([ns for _, ns in steps])}

    runs = [
        run((DECODE, 100), (MIXED, 1000), (PREFILL, 50), (PREFILL, 50), (StepShape(), 7)),
        run((MIXED, 1100), (DECODE, 100), (PREFILL, 50), (StepShape(), 9)),
        run((long, 900), (other, 5), (DECODE, 160), (PREFILL, 50)),
    ]
    found = errors_of_repeats(runs)
    for region, others in (
        ("decode", [130 / 100, 130 / 100, 100 / 160]),
        ("mixed", [1000 / 1000, 950 / 1100, 1050 / 900]),
    ):
        errors = np.sqrt(2 / 3) * 100 * (np.array(others) - 1)
        assert found[region].tolist() == pytest.approx(errors.tolist())
    assert len(found["prefill"]) == len(found["all"]) == 0
    assert not any(map(len, errors_of_repeats(runs[:1]).values()))
    for none in ([runs[0], run((PREFILL, 5))], [run(), run()], [run((DECODE, 5)), run()]):
        assert not any(map(len, errors_of_repeats(none).values())), "no step is in both"
    longer = run((MIXED._replace(decode_context=round(1.1 * MIXED.decode_context)), 900))
    assert len(errors_of_repeats([runs[0], longer])["mixed"]) == 0


@pytest.mark.parametrize("runs", [2, 3, 8])
def test_other_runs_allow_no_more_than_the_truth_would_miss(runs: int) -> None:
    """Whatever their number: a model that knows what steps take in the mean is as far off."""
    mean = np.arange(100_000, 104_000)
    zeros = np.zeros(len(mean), np.int64)
    steps = dict.fromkeys(StepShape._fields, zeros) | {"decode_tokens": zeros + 1}
    noise = np.random.default_rng(2).normal(1, 0.02, (runs, len(mean)))
    noisy = [steps | {"decode_context": mean, "gpu_ns": mean * each} for each in noise]
    found = errors_of_repeats(noisy)["decode"]
    of_truth = (100 * (1 / noise - 1)).ravel()
    assert len(found) == len(of_truth)
    for name in ("median", "p90", "p99"):
        assert spread(found)[name] == pytest.approx(spread(of_truth)[name], rel=0.05)


def test_longer_steps_are_a_cost_model(tmp_path: Path) -> None:
    """Every step is longer by the factor, however it is asked for."""
    done, _ = calibrated(tmp_path)
    plain = CalibratedCostModel(done.profile)
    longer = Longer(plain, 1.01)
    for shape in (DECODE, PREFILL, MIXED):
        costs = longer.step_costs(StepFeatures.from_shapes([shape]))
        (gpu_ns,), (host_ns,) = costs.gpu_ns.tolist(), costs.host_ns.tolist()
        assert longer.step_cost(shape)[:2] == (gpu_ns, host_ns)
        assert sum(int(term[0]) for term in costs.terms.values()) == gpu_ns
        assert gpu_ns == pytest.approx(1.01 * plain.step_cost(shape)[0], abs=1)
        assert host_ns == pytest.approx(1.01 * plain.step_cost(shape)[1], abs=1)
    check_decode_run(longer, DECODE, 50)
    assert plain.name in longer.name


@pytest.mark.parametrize(
    ("scenario", "loads"), [("quickstart", GPU_LOADS), ("engine_on_cpu", CPU_LOADS)]
)
def test_every_load_is_a_scenario(scenario: str, loads: Any) -> None:
    """All settings are understood, and no two loads go by the same name."""
    assert len({load.stem for load in loads}) == len(loads)
    for load in loads:
        filled = {"{rate}": "5", "{scale}": "0.5", "{trace}": json.dumps(str(TRACE))}
        settings = [load.workload, load.arrivals, *load.more]
        for name, value in filled.items():
            settings = [text.replace(name, value) for text in settings]
        load_scenario(scenario, [*settings, "load.warmup_requests=0"])
        scaled = "{rate}" in load.arrivals or "{scale}" in load.arrivals
        assert scaled == (load.share > 0)


def test_loads_are_chosen_by_name() -> None:
    """As in the table or as in the names of files; their order is the suite's."""
    names = [load.name for load in chosen(GPU_LOADS, "Bursts, poisson_30_percent,offline")]
    assert names == ["offline", "poisson 30 %", "bursts"]
    assert chosen(GPU_LOADS, None) == GPU_LOADS
    with pytest.raises(FidelityError, match=r"--loads names burst, noise; there are offline, "):
        chosen(GPU_LOADS, "burst,offline,noise")
    with pytest.raises(FidelityError, match=r"--loads names nothing"):
        chosen(GPU_LOADS, ",")


def is_nearer(load: dict[str, Any]) -> bool:
    """Calibrated to this machine, however busy: nearer than a formula for an H200 could be."""
    own, analytic = (1 + load["metrics"][whose]["mean_tpot_ms"]["error"] / 100
                     for whose in ("calibrated", "analytic"))  # fmt: skip
    return abs(math.log(own)) < abs(math.log(analytic)) / 2


def calibrated_and_served(folder: Path) -> tuple[Path, Path, str, dict[str, Any]]:
    """The profile, the folder of its loads, what was printed of them, and their judgement."""
    profiles, out = folder / "profiles", folder / "fidelity"
    made = calibrate_cpu(profiles)
    assert made.exit_code == 0, made.output
    (profile,) = profiles.glob("*.json")
    command = ("fidelity", str(profile), "--cpu", "--output-dir", str(out))
    nothing = invoke(*command, "--judge-only")
    assert nothing.exit_code == 1
    assert "nothing has been measured" in nothing.stderr
    assert not out.exists()
    first = invoke(*command, "--repeats", "1")
    assert first.exit_code == 0, first.output
    return (
        profile,
        out,
        first.stdout,
        json.loads((out / f"judged-{profile.stem}.json").read_bytes()),
    )


def test_the_suite_on_a_cpu(tmp_path: Path) -> None:
    """The real engine: decisions are all equal, nothing is measured twice, a picture is drawn."""
    for sitting in range(3):  # a machine that gets busy in between is another one
        profile, out, printed, judgement = calibrated_and_served(tmp_path / str(sitting))
        if all(map(is_nearer, judgement["loads"])):
            break
    command = ("fidelity", str(profile), "--cpu", "--output-dir", str(out))
    assert all(map(is_nearer, judgement["loads"]))
    assert "goals reached; * is one that is missed" in printed
    assert [each["load"] for each in judgement["loads"]] == [load.name for load in CPU_LOADS]
    for each in judgement["loads"]:
        assert each["parity"].startswith("all ")
        assert each["steps"]["calibrated"]["all"]["count"] > 20
    cells = [path for path in out.iterdir() if not path.name.startswith("judged")]
    assert len(cells) == 1 + 2 * len(CPU_LOADS)
    stamps = {path: path.stat().st_mtime_ns for path in cells}
    picture = tmp_path / "picture.png"
    again = invoke(*command, "--judge-only", "--picture", str(picture))
    assert again.stdout == f"{printed}{picture}\n"
    assert {path: path.stat().st_mtime_ns for path in cells} == stamps
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = invoke("fidelity", str(profile), "--output-dir", str(out))
    assert result.exit_code == 2
    assert "is a profile of a CPU: add --cpu" in result.stderr
    other = json.loads(profile.read_bytes())
    other["identity"]["page_size"] = 64
    profile.write_text(json.dumps(other), encoding="utf-8")
    result = invoke(*command)  # what is there is of another engine
    assert result.exit_code == 1
    assert "an engine with page_size 16, not 64" in result.stderr
    for wrong in (("--loads", "noise"), ("--picture", "picture.pdf"), ("--trace", str(TRACE))):
        assert invoke(*command, *wrong).exit_code == 2


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("nvidia-*.json")), ids=lambda path: path.stem)
def test_each_shipped_profile_has_a_suite_of_its_own_gpu(path: Path, tmp_path: Path) -> None:
    """The loads name the GPU of the profile, whose file predicts their rates."""
    profile = read_profile(path)
    basis, _ = _set_up(profile, None, "dummy", cpu=False)
    few = replace(basis, loads=[load for load in basis.loads if load.name == "poisson 60 %"])
    suite = open_suite(tmp_path / "fidelity", few, profile, path)
    scenario = suite.loaded(few.loads[0], str(path)).scenario
    assert is_gpu(scenario.hardware.gpu, profile.identity.gpu)
    (rate,) = suite.capacities.values()
    assert rate > 1
