"""`workbench calibrate --kernels`: from a device to tables, and from tables to predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from command_line import SMALL, invoke
from made_kernels import LIMITS, kernel_ns, made_kernels, measured_whole

from engine.core.model_spec import load_model_spec
from engine.profiling.kernel_cases import KernelCase, KernelLimits
from engine.profiling.kernel_tables import KernelTimes, measure_kernels
from simulator import shipped_profiles
from simulator.composition.kernel_file import KernelFile, encode_kernel_file, read_kernel_file
from simulator.profile import ProfileError
from simulator.profile_file import encode_profile
from simulator.roofline import NAME as ANALYTIC
from workbench.analysis.rebuilt_models import rebuild_cost_models
from workbench.calibration.kernel_measurements import PartialKernels
from workbench.calibration.kernels import calibrate_kernels, file_name, refit_kernels, teach
from workbench.record.run_record import RunReader
from workbench.running.deployment import resolve_deployment
from workbench.scenario.errors import ScenarioErrors
from workbench.scenario.source import load_scenario

CARDS = ("Llama-3.1-8B", "Qwen3-0.6B")


class MadeMeter:
    """A device whose kernels take what `kernel_ns` says, until it is unplugged.

    Args:
        lasts: cases that it measures.
    """

    name, number_format, page_size, bus_id = "NVIDIA H200", "bf16", 16, None
    limits: KernelLimits = LIMITS
    versions, implementations = {"torch": "2"}, {"linear": "made"}

    def __init__(self, lasts: int = 1 << 30) -> None:
        self.lasts = lasts
        self.compiled, self.measured = 0, 0

    def compile(self, cases) -> None:
        self.compiled = len(cases)

    def times(self, case: KernelCase) -> list[float]:
        if self.measured == self.lasts:
            raise KeyboardInterrupt
        self.measured += 1
        return [kernel_ns(case) * factor for factor in (0.99, 1.0, 1.02)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test runs in an empty directory, and what ships lies elsewhere: nothing at first."""
    shipped, here = tmp_path / "shipped", tmp_path / "here"
    shipped.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(shipped_profiles, "FOLDER", shipped)
    return shipped


@pytest.fixture(scope="module")
def tables() -> KernelFile:
    """Of the made-up GPU."""
    return made_kernels(CARDS)


def measure(meter: MadeMeter, minutes: float = 1.0):
    return calibrate_kernels(
        "cuda", Path("profiles"), minutes, models=CARDS, open_meter=lambda _: meter
    )


def measure_missing(meter: MadeMeter):
    return calibrate_kernels(
        "cuda", Path("profiles"), 1.0, models=CARDS, only_missing=True, open_meter=lambda _: meter
    )


def test_tables_hold_what_was_measured():
    """Each case is measured in each pass; the file has medians, spreads and how many times."""
    meter = MadeMeter()
    done = measure(meter)
    assert done.complete
    assert done.path == Path("profiles/kernels-nvidia-h200.json")
    assert read_kernel_file(done.path) == done.kernels
    points = sum(len(series.points) for series in done.kernels.series)
    assert meter.measured == 2 * points == 2 * meter.compiled
    for series in done.kernels.series:
        for point, ns in zip(series.points, series.ns, strict=True):
            assert ns == pytest.approx(kernel_ns(KernelCase(series.op, series.sizes, point)), abs=1)
        assert set(series.repeats) == {6}
        assert min(series.spread_ns) > 0
    assert done.kernels.identity.implementations == {"linear": "made"}
    assert not list(Path("profiles").glob("*.partial.jsonl"))


def test_an_interrupted_measurement_goes_on():
    """What was measured is not measured again, and a line that was cut short does no harm."""
    first, second = MadeMeter(lasts=700), MadeMeter()
    with pytest.raises(KeyboardInterrupt):
        measure(first)
    file = Path("profiles/kernels-nvidia-h200.partial.jsonl")
    file.write_bytes(file.read_bytes() + b'["norm", [10')
    done = measure(second)
    assert first.measured + second.measured == 2 * first.compiled
    assert done.complete


def test_times_of_another_device_are_not_taken_over():
    """Software and device of a file that goes on must be those of before."""
    with pytest.raises(KeyboardInterrupt):
        measure(MadeMeter(lasts=7))
    other = MadeMeter()
    other.versions = {"torch": "3"}
    with pytest.raises(ProfileError, match="another device or version: delete it"):
        measure(other)
    file = Path("profiles/kernels-nvidia-h200.partial.jsonl")
    content = file.read_text()
    line = content.count("\n") + 1
    for damaged in (
        '["norm", 3]',
        '["norm", [64], [3], null, [NaN]]',
        '["norm", [64], [3], null, [1e999]]',
        '["norm", [64], [3], null, [0]]',
        '["norm", [64], [3], null, ["long"]]',
        '["norm", [64], [3], null, []]',
        '["norm", [64], [3, 3], null, [7.5]]',
        '["noise", [64], [3], null, [7.5]]',
        '["norm", [64], [3], "all", [7.5]]',
    ):
        file.write_text(f"{content}{damaged}\n")
        anew = rf"is damaged \(line {line}: .*\): delete it, and measuring begins anew"
        with pytest.raises(ProfileError, match=anew):
            measure(MadeMeter())


def test_what_tables_lack_is_added_to_them(folder: Path):
    """--missing measures no case again, and keeps what each sitting was."""
    with pytest.raises(ProfileError, match="no kernel tables of NVIDIA H200 to add to"):
        measure_missing(MadeMeter())
    whole = measure(MadeMeter()).kernels
    path = Path("profiles/kernels-nvidia-h200.json")
    lacks = ("mlp", "plan")
    series = tuple(each for each in whole.series if each.op not in lacks)
    first = msgspec.structs.replace(series[0], **{
        name: getattr(series[0], name)[1:] for name in ("points", "ns", "spread_ns", "repeats")
    })  # fmt: skip
    part = msgspec.structs.replace(whole, series=(first, *series[1:]))
    (folder / path.name).write_bytes(encode_kernel_file(part))
    path.unlink()
    meter = MadeMeter()
    found = measure_missing(meter)
    added = sum(len(each.points) for each in whole.series if each.op in lacks) + 1
    assert meter.measured == 2 * added
    assert found.kernels.series == whole.series
    assert len(found.kernels.conditions["sittings"]) == 2
    again = MadeMeter()
    assert measure_missing(again).kernels.series == whole.series
    assert again.measured == 0
    other = MadeMeter()
    other.versions = {"torch": "3"}
    with pytest.raises(ProfileError, match=r"its versions is .*'2'.*, here it is .*'3'"):
        measure_missing(other)


def test_no_time_leaves_no_tables():
    """Where too little was measured, the complaint says how to go on."""
    with pytest.raises(ProfileError, match="the same command goes on where this one stopped"):
        measure(MadeMeter(), minutes=0.0)
    assert not Path("profiles/kernels-nvidia-h200.json").exists()


def test_passes_end_at_the_deadline():
    """Nothing is measured after the deadline."""
    meter, done = MadeMeter(), KernelTimes()
    cases = [KernelCase("norm", (64,), (rows,)) for rows in (1, 2, 3)]
    told: list[float] = []
    complete = measure_kernels(
        meter, cases, done, deadline_s=float("-inf"), measured=lambda *_: told.append(1)
    )
    assert (complete, told, done.times) == (False, [], {})
    assert measure_kernels(
        meter, cases, done, deadline_s=float("inf"), measured=lambda *args: told.append(args[2])
    )
    assert told[-1] == 1.0
    assert done.passes == dict.fromkeys(cases, 2)


def test_models_measured_whole_teach(tables: KernelFile, folder: Path):
    """Profiles of the same GPU, beside the tables or shipped, correct steps and show the error."""
    assert measure(MadeMeter()).kernels.composition.lenders == ()
    profiles = Path("profiles")
    small, large = (measured_whole(tables, card).profile for card in ("Qwen3-0.6B", "Llama-3.1-8B"))
    (profiles / f"{small.name}.json").write_bytes(encode_profile(small))
    (folder / f"{large.name}.json").write_bytes(encode_profile(large))
    (profiles / "notes.json").write_text("{}")
    done = refit_kernels(profiles / "kernels-nvidia-h200.json")
    composition = done.kernels.composition
    assert [lender.model for lender in composition.lenders] == ["Llama-3.1-8B", "Qwen3-0.6B"]
    assert {error.model for error in composition.errors} == {"Llama-3.1-8B", "Qwen3-0.6B"}
    assert read_kernel_file(done.path) == done.kernels
    older = encode_profile(large).replace(b'"profile/v5"', b'"profile/v3"')
    (profiles / "older.json").write_bytes(older)
    with pytest.warns(UserWarning, match=r"left out: .*older.json is 'profile/v3'"):
        assert refit_kernels(done.path).kernels == done.kernels


def test_a_second_model_needs_no_new_tables(tables: KernelFile):
    """A model that is calibrated later teaches the tables beside its profile, if there are any."""
    profile = measured_whole(tables, "Qwen3-0.6B").profile
    assert teach(profile, Path()) is None
    path = Path("kernels-nvidia-h200.json")
    path.write_bytes(encode_kernel_file(tables))
    Path(f"{profile.name}.json").write_bytes(encode_profile(profile))
    taught = teach(profile, Path())
    assert taught is not None
    assert taught.kernels.series == tables.series
    assert [each.model for each in read_kernel_file(path).composition.lenders] == ["Qwen3-0.6B"]


def test_the_command_tells_what_composing_is_worth(tables: KernelFile):
    """--refit of tables prints errors beside the analytic model's, or says that none is known."""
    path = Path("kernels-nvidia-h200.json")
    path.write_bytes(encode_kernel_file(tables))
    result = invoke("calibrate", "--refit", str(path))
    assert result.exit_code == 0, result.output
    assert "the error of composed steps is not\nknown" in result.stdout
    profile = measured_whole(tables, "Qwen3-0.6B").profile
    Path(f"{profile.name}.json").write_bytes(encode_profile(profile))
    result = invoke("calibrate", "--refit", str(path))
    assert "composed without any step of their model, in % (analytic" in result.stdout
    assert "Qwen3-0.6B      decode" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--kernels", "--dtype", "bf16"], "--kernels measures in the engine's own number format"),
        (["--kernels", "--refit", "x.json"], "--refit measures nothing"),
        (["--kernels", "--cpu", "--model", "Qwen3-8B"], "--cpu calibrates a tiny model"),
        (["--kernels", "--all-reduce", "--missing"], "nothing else: give no --missing"),
        (["--kernels", "--all-reduce", "--minutes", "3"], "nothing else: give no --missing"),
    ],
)
def test_options_that_contradict_each_other(arguments: list[str], complaint: str):
    """The complaint names both."""
    result = invoke("calibrate", *arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr


# Which speaks.


def chosen(*overrides: str) -> str:
    """Who says how long steps take."""
    return resolve_deployment(load_scenario("quickstart", overrides)).cost_model_name


def test_a_profile_of_the_very_model_speaks_first(tables: KernelFile, folder: Path):
    """Then kernels of the GPU, and where there are none of these either, the analytic model."""
    assert chosen() == ANALYTIC
    (folder / "kernels-made.json").write_bytes(encode_kernel_file(tables))
    composed = "composed from kernel tables of NVIDIA H200, error not known"
    assert chosen() == chosen("model.name=Qwen3-8B") == composed
    profile = measured_whole(tables, "Llama-3.1-8B").profile
    (folder / f"{profile.name}.json").write_bytes(encode_profile(profile))
    assert chosen() == profile.name
    on_two = chosen("deployment.pools=[{tensor_parallel_size: 2}]")
    assert on_two == composed.replace("error", "exchange analytic, error")
    assert chosen("hardware.profile=analytic") == ANALYTIC


@pytest.mark.parametrize(
    "overrides",
    [
        ["hardware.gpu=h100"],
        ["model.weight_dtype=fp8"],
        ["model.kv_dtype=fp8"],
        ["deployment.pools=[{page_size: 64}]"],
        ["deployment.pools=[{page_size: 64}, {page_size: 16}]"],
        ["model.name=DeepSeek-V3", "deployment.pools=[{tensor_parallel_size: 8}]"],
    ],
)
def test_kernels_of_something_else_do_not_speak(
    tables: KernelFile, folder: Path, overrides: list[str]
):
    """Another GPU, number format, page size or kind of attention is the analytic model's."""
    (folder / "kernels-made.json").write_bytes(encode_kernel_file(tables))
    assert chosen(*overrides) == ANALYTIC


def test_kernels_that_are_named_must_fit(tables: KernelFile):
    """A path to them that does not fit is refused with everything that differs."""
    Path("mine.json").write_bytes(encode_kernel_file(tables))
    assert chosen("hardware.profile=mine.json").startswith("composed from kernel tables")
    with pytest.raises(ScenarioErrors) as caught:
        chosen("hardware.profile=mine.json", "hardware.gpu=h100", "model.kv_dtype=fp8")
    text = str(caught.value.errors[0])
    assert "kernels-made holds kernels of NVIDIA H200, not h100; of bf16 weights and KV" in text
    with pytest.raises(ScenarioErrors) as caught:
        chosen("hardware.profile=mine.json", "model.name=Mixtral-8x7B", "hardware.gpu=h200")
    assert "kernels-made: the kernel tables have no moe_mlp" in str(caught.value.errors[0])


def test_a_run_says_that_it_was_composed_and_is_read_again(tables: KernelFile, folder: Path):
    """Result and header name the tables; explain, compare and forks find the same times."""
    file = folder / "kernels-made.json"
    file.write_bytes(encode_kernel_file(tables))
    result = invoke(*SMALL)
    assert result.exit_code == 0, result.output
    name = "composed from kernel tables of NVIDIA H200, error not known"
    assert result.stdout.endswith(f"Step times: {name}\n")
    run = RunReader(Path("runs/quickstart-1"))
    assert Path(run.header.inputs["hardware.profile"].path) == file.resolve()
    (model,) = rebuild_cost_models(run).values()
    assert model.name == name
    fork = invoke("simulate", "--fork", "runs/quickstart-1@40")
    assert fork.exit_code == 0, fork.output
    assert RunReader(Path("runs/quickstart-2")).header.cost_model == name


def test_the_cpus_kernels_run():
    """Every op of a CPU can be launched on operands of the sizes that are measured."""
    device = pytest.importorskip("engine.profiling.kernel_device").kernel_device("cpu")
    spec = load_model_spec(str(Path(__file__).parents[1] / "scenarios" / "tiny_model.json"))
    from engine.profiling.kernel_cases import HOST_WORK, OPS, Draw, design_kernels, draw_experts

    first: dict[str, KernelCase] = {}
    cases = design_kernels([spec], device.limits, (1,))
    for case in cases:
        first.setdefault(case.op, case)
    loads = draw_experts(4, 8, 2, Draw(8))
    point = (4, len(set(loads.ravel().tolist())), 1)
    for op in ("moe_mlp", "moe_layer"):
        first[op] = KernelCase(op, (8, 2, 64, 32), point, Draw(8))
    first["route"] = KernelCase("route", (8, 2), (4,))
    first["linear"] = KernelCase("linear", (8, 64), (4,))
    first["norm"] = KernelCase("norm", (64,), (4,))
    device.compile(list(first.values()))
    assert set(first) == set(OPS)
    # And those that need most of the cache, whose pages must suffice.
    attentions = [case for case in cases if case.op.endswith("attention")]
    largest = sorted(attentions, key=lambda case: (case.point[-1], case.point))[-4:]
    for case in [*first.values(), *largest]:
        times = device.times(case)
        assert len(times) == (40 if case.op in HOST_WORK else 5)
        assert min(times) > 0
    assert (device.name, device.number_format, device.bus_id) == ("cpu", "fp32", None)
    assert set(device.versions) >= {"torch", "triton"}
    assert set(device.implementations.values()) == {"torch"}


def test_partial_files_say_whose_they_are(tables: KernelFile):
    """The first line is the identity, each other one a case and its times."""
    partial = PartialKernels(Path("some/kernels.partial.jsonl"), tables.identity)
    case = KernelCase("norm", (64,), (3,))
    partial.append(case, [1000.04, 2000.0])
    head, line = map(json.loads, partial.path.read_text().splitlines())
    assert head["identity"]["gpu"] == "NVIDIA H200"
    assert line == ["norm", [64], [3], None, [1000.0, 2000.0]]
    assert partial.read() == KernelTimes({case: [1000.0, 2000.0]}, {case: 1})
    assert file_name("NVIDIA H200 NVL") == "kernels-nvidia-h200-nvl"
