"""Profiles that ship with the program are found where a scenario names none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from command_line import SMALL, invoke
from measured_steps import gpu_shapes, profile_of, samples_of

from engine.core.hardware_spec import gpu_names
from engine.core.model_spec import load_model_spec
from simulator import shipped_profiles
from simulator.profile import Profile
from simulator.profile_file import encode_profile, read_profile
from simulator.roofline import NAME as ANALYTIC
from workbench.analysis.header_diff import header_differences
from workbench.analysis.rebuilt_models import rebuild_cost_models
from workbench.record.header import decode_header, encode_header
from workbench.record.run_record import HEADER, RunReader
from workbench.running import profile_remarks
from workbench.running.deployment import resolve_deployment
from workbench.running.profile_match import is_gpu, model_digest
from workbench.scenario.errors import ScenarioErrors
from workbench.scenario.source import load_resolved, load_scenario

NAME = "nvidia-h200-llama-3.1-8b-bf16-tp1"


def profile_for(model: str, name: str, **identity: object) -> Profile:
    """A made-up profile of a model on an H200, of an engine that has 60,000 pages."""
    made = profile_of(samples_of(gpu_shapes()))
    facts = {
        "gpu": "NVIDIA H200", "dtype": "bf16", "kv_dtype": "bf16",
        "model_digest": model_digest(load_model_spec(model)),
    }  # fmt: skip
    own = msgspec.structs.replace(made.identity, **(facts | identity))
    engine = msgspec.structs.replace(made.engine, num_pages=60_000, max_running_requests=256)
    return msgspec.structs.replace(made, name=name, identity=own, engine=engine)


@pytest.fixture(scope="module")
def content() -> bytes:
    """Of the one profile that ships in these tests."""
    return encode_profile(profile_for("Llama-3.1-8B", NAME))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test runs in an empty directory, and what ships lies elsewhere: nothing at first."""
    shipped, here = tmp_path / "shipped", tmp_path / "here"
    shipped.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(shipped_profiles, "FOLDER", shipped)
    return shipped


@pytest.fixture
def shipped(folder: Path, content: bytes) -> Path:
    """The file of the profile that ships."""
    file = folder / f"{NAME}.json"
    file.write_bytes(content)
    return file


def chosen(*overrides: str, scenario: str = "quickstart") -> str:
    """Who says how long steps take."""
    return resolve_deployment(load_scenario(scenario, overrides)).cost_model_name


def simulated(*arguments: str) -> RunReader:
    """The newest of the recorded runs."""
    result = invoke(*SMALL, *arguments)
    assert result.exit_code == 0, result.output
    return RunReader(max(Path("runs").iterdir(), key=lambda run: int(run.name.split("-")[-1])))


def test_what_ships_can_be_read_and_found() -> None:
    """Every file in the package is a profile under its own name, of which its file name tells."""
    real = Path(shipped_profiles.__file__).with_name("profiles")
    for path in set(real.glob("*.json")) - set(real.glob("kernels-*.json")):
        profile = read_profile(path)
        own = profile.identity
        assert path.stem == profile.name
        assert shipped_profiles.read_identity(path) == own
        stem = shipped_profiles.words(path.stem)
        assert {own.dtype, f"tp{own.tensor_parallel_size}"} <= stem
        assert any(is_gpu(name, own.gpu) and name in stem for name in gpu_names())


def test_the_shipped_profile_is_found(shipped: Path, content: bytes) -> None:
    """The result names it, and the record which file it was."""
    result = invoke(*SMALL)
    assert result.stdout.endswith(f"Step times: {NAME}\n")
    header = RunReader(Path("runs/quickstart-1")).header
    assert header.cost_model == NAME
    facts = header.inputs["hardware.profile"]
    assert Path(facts.path) == shipped.resolve()
    assert facts.sha256 == hashlib.sha256(content).hexdigest()
    assert header.scenario["hardware"]["profile"] is None


@pytest.mark.usefixtures("shipped")
def test_a_model_by_path_finds_it_too() -> None:
    """What a model computes counts, not what it is called."""
    cards = Path(shipped_profiles.__file__).parents[1] / "engine" / "core" / "model_cards"
    Path("mine.json").write_bytes((cards / "Llama-3.1-8B.json").read_bytes())
    assert chosen("model={path: mine.json}") == NAME


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize(
    "settings",
    [
        "hardware.profile=analytic",
        "hardware.gpu=h100",
        "model.name=Qwen3-0.6B",
        "model.weight_dtype=fp8",
        "model.kv_dtype=fp8",
        "deployment.pools.0.tensor_parallel_size=2",
        "deployment.pools.0.page_size=64",
        "deployment.pools=[{}, {tensor_parallel_size: 2}]",
        "deployment.pools=[{}, {page_size: 64}]",
    ],
)
def test_what_does_not_fit_all_pools_is_not_taken(settings: str) -> None:
    """Then, and on request, the analytic model speaks; the recorded scenario says so."""
    assert chosen(settings) == ANALYTIC
    run = simulated("--set", settings)
    assert run.header.cost_model == ANALYTIC
    assert run.header.scenario["hardware"]["profile"] == "analytic"
    assert "hardware.profile" not in run.header.inputs


@pytest.mark.usefixtures("shipped")
def test_limits_of_a_pool_may_be_others() -> None:
    """They decide whose page count holds, no more."""
    others = "{max_num_batched_tokens: 2048, cuda_graph_batch_sizes: [4]}"
    loaded = load_scenario("quickstart", [f"deployment.pools=[{{}}, {others}]"])
    deployment = resolve_deployment(loaded)
    assert {replica.config.cost_model.name for replica in deployment.replicas} == {NAME}
    pages = [replica.facts.num_pages for replica in deployment.replicas]
    estimates = [replica.memory.num_pages for replica in deployment.replicas]
    assert pages == [60_000, *estimates[1:]]


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("model.kv_dtype=fp8", "is of bf16 weights and bf16 KV, not bf16 and fp8"),
        ("hardware.gpu=h100", "is of NVIDIA H200, not h100"),
        ("deployment.pools=[{}, {page_size: 64}]", "does not fit all pools"),
    ],
)
def test_a_profile_that_is_not_taken_is_told_of(settings: str, why: str) -> None:
    """Two cost models are compared without anybody's wish otherwise."""
    (note,) = simulated("--set", settings).header.notes
    assert f"step times are analytic, because the profile {NAME} {why}: compare with" in note
    assert simulated("--set", settings, "--set", "hardware.profile=analytic").header.notes == ()
    assert simulated("--set", "model.name=Qwen3-0.6B").header.notes == ()
    assert simulated().header.notes == ()


@pytest.mark.usefixtures("shipped")
def test_the_pages_that_were_counted_may_be_asked_for() -> None:
    """A run can be repeated with the page count that it printed, and with no more."""
    (replica,) = resolve_deployment(
        load_scenario("quickstart", ["deployment.pools.0.num_pages=60000"])
    ).replicas
    assert replica.facts.num_pages == 60_000 > replica.memory.num_pages
    with pytest.raises(ScenarioErrors, match="60,001 pages do not fit, 60,000 do") as caught:
        resolve_deployment(load_scenario("quickstart", ["deployment.pools.0.num_pages=60001"]))
    (error,) = caught.value.errors
    assert error.help is not None
    assert f"profile {NAME} is of an engine that had 60,000 pages" in error.help
    assert "--set deployment.pools.0.num_pages=60000" in error.help
    assert "GiB" not in error.help, "the sums of a whole GPU say something else"


PARTS = {"complete": False, "designed_steps": 125}


@pytest.mark.parametrize(
    ("identity", "conditions", "note"),
    [
        ({}, {"complete": True, "designed_steps": 125}, ""),
        ({}, PARTS, ": 50 of 125 steps measured; the same `workbench calibrate --model tiny-test`"),
        ({"gpu": "cpu"}, PARTS, "`workbench calibrate --model tiny-test --device cpu`"),
        ({"gpu": "cpu", "model": "tiny_model"}, PARTS, "`workbench calibrate --cpu`"),
        ({}, PARTS | {"designed_steps": 50}, "50 of 50 steps measured, not all of them three"),
        ({}, {"complete": False}, "calibration not complete; the same `workbench calibrate"),
        ({"engine_version": "not installed"}, {}, ""),
        ({"engine_version": "0.0.9"}, {}, "measured with version 0.0.9 of the engine (here: 7)"),
    ],
)
def test_a_run_says_what_restricts_its_profile(
    monkeypatch: pytest.MonkeyPatch, identity: dict[str, str], conditions: dict, note: str
) -> None:
    """That steps were not measured, or with another version: in the result and in the record."""
    monkeypatch.setattr(profile_remarks, "workbench_version", lambda: "7")
    own = {"model": "tiny-test", "engine_version": "7"} | identity
    profile = profile_for("Llama-3.1-8B", "mine")
    measured = msgspec.structs.asdict(profile.samples).items()
    few = type(profile.samples)(**{name: column[:50] for name, column in measured})
    named = msgspec.structs.replace(profile.identity, **own)
    profile = msgspec.structs.replace(profile, identity=named, samples=few, conditions=conditions)
    Path("mine.json").write_bytes(encode_profile(profile))
    result = invoke(*SMALL, "--set", "hardware.profile=mine.json")
    assert result.exit_code == 0, result.output
    told = result.stdout.partition("\nStep times: mine")[2].splitlines()[1:]
    assert bool(told) == bool(note)
    assert note in "".join(told)
    assert RunReader(Path("runs/quickstart-1")).header.cost_model_notes == tuple(told)
    explained = invoke("explain", "runs/quickstart-1").stdout
    assert all(f"note: step times: {line}" in explained for line in told)


def test_only_what_ships_is_found(folder: Path, content: bytes) -> None:
    """Not a profile of the user's, none of a CPU; other files are not opened."""
    Path("profiles").mkdir()
    Path(f"profiles/{NAME}.json").write_bytes(content)
    tiny = profile_for("Llama-3.1-8B", "cpu", gpu="cpu")
    (folder / "cpu-llama-3.1-8b-bf16-tp1.json").write_bytes(encode_profile(tiny))
    for name in (NAME.replace("h200", "h100"), NAME.replace("tp1", "tp2"), f"{NAME}.partial"):
        (folder / f"{name}.{'jsonl' if 'partial' in name else 'json'}").write_text("no profile")
    assert chosen() == ANALYTIC


def test_a_shipped_file_that_is_no_profile_is_an_error(folder: Path) -> None:
    """At its place in the scenario, with the way around it."""
    (folder / f"{NAME}.json").write_text("{}")
    with pytest.raises(ScenarioErrors) as caught:
        chosen()
    (error,) = caught.value.errors
    assert error.code == "S211"
    assert f"{NAME}.json is not a profile" in error.message
    assert error.help == "`hardware.profile: analytic` does without"


def test_a_profile_without_prompts_is_refused_before_any_step() -> None:
    """It may be read, as a calibration that was cut short may leave it, but no scenario has it."""
    profile = profile_for("Llama-3.1-8B", "mine")
    fit = msgspec.structs.replace(profile.fit, mixed=None)
    Path("mine.json").write_bytes(encode_profile(msgspec.structs.replace(profile, fit=fit)))
    result = invoke(*SMALL, "--set", "hardware.profile=mine.json")
    assert result.exit_code == 2
    assert "error[S211]: mine.json is of decode steps alone" in result.stderr


def test_a_file_called_analytic() -> None:
    """`./analytic` is a path, from `--set` and in a file; near misses of the word are told."""
    Path("analytic").write_text("{}")
    text = json.dumps(load_scenario("quickstart", ["hardware.profile=./analytic"]).resolved)
    Path("mine.yaml").write_text(text)
    for scenario, overrides in (("quickstart", ["hardware.profile=./analytic"]), ("mine.yaml", [])):
        with pytest.raises(ScenarioErrors, match="analytic is not a profile"):
            chosen(*overrides, scenario=scenario)
    with pytest.raises(ScenarioErrors, match="did you mean `analytic`"):
        chosen("hardware.profile=analitic")


def test_a_recorded_scenario_chooses_the_same_again(folder: Path, content: bytes) -> None:
    """What ships later changes nothing where nothing was found."""
    before = simulated().header
    file = folder / f"{NAME}.json"
    file.write_bytes(content)
    after = simulated().header
    names = [
        resolve_deployment(load_resolved(header.scenario, "header")).cost_model_name
        for header in (before, after)
    ]
    assert names == [before.cost_model, after.cost_model] == [ANALYTIC, NAME]


def as_before_shipped_profiles(run: RunReader) -> RunReader:
    """A record whose scenario does not say `analytic`."""
    header = decode_header((run.path / HEADER).read_bytes())
    hardware = {**header.scenario["hardware"], "profile": None}
    scenario = {**header.scenario, "hardware": hardware}
    old = msgspec.structs.replace(header, scenario=scenario)
    (run.path / HEADER).write_bytes(encode_header(old))
    return RunReader(run.path)


@pytest.mark.parametrize("old", [False, True])
def test_forks_keep_the_analytic_model(folder: Path, content: bytes, old: bool) -> None:
    """Also of records of before there were shipped profiles, and forks of forks."""
    run = simulated()
    if old:
        as_before_shipped_profiles(run)
    (folder / f"{NAME}.json").write_bytes(content)
    for number in (1, 2):
        result = invoke("simulate", "--fork", f"runs/quickstart-{number}@{40 * number}")
        assert result.exit_code == 0, result.output
        assert f"Step times: {ANALYTIC}" in result.stdout
    fork = RunReader(Path("runs/quickstart-3")).header
    assert fork.scenario["hardware"]["profile"] == "analytic"
    assert [each.changes for each in fork.forks] == [{}, {}]


@pytest.mark.parametrize("moved", [False, True])
def test_records_find_their_profile(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    """For explain, compare and forks, where it was or among what another installation ships."""
    run = simulated()
    if moved:
        shipped.parent.rename(tmp_path / "moved")
        monkeypatch.setattr(shipped_profiles, "FOLDER", tmp_path / "moved")
    (model,) = rebuild_cost_models(run).values()
    assert model.name == NAME
    result = invoke("simulate", "--fork", "runs/quickstart-1@40")
    assert result.exit_code == 0, result.output
    assert "KV pages; started with" not in result.stderr
    fork = RunReader(Path("runs/quickstart-2"))
    assert fork.header.cost_model == NAME
    assert Path(fork.header.inputs["hardware.profile"].path).is_file()
    assert fork.header.scenario == run.header.scenario


def test_a_profile_that_was_replaced_is_told(shipped: Path) -> None:
    """Nothing is made of another profile under the same name."""
    run = simulated()
    other = profile_for("Llama-3.1-8B", NAME)
    fit = msgspec.structs.replace(other.fit, decode=other.fit.decode[:1])
    shipped.write_bytes(encode_profile(msgspec.structs.replace(other, fit=fit)))
    assert rebuild_cost_models(run) == {}
    result = invoke("simulate", "--fork", "runs/quickstart-1@40")
    assert result.exit_code == 1
    assert "(hardware.profile) has changed since it was recorded" in result.stderr


def test_a_profile_is_no_difference_to_an_engine(shipped: Path) -> None:
    """An engine's steps take what they take; between simulations it is one."""
    run, other = simulated(), simulated("--set", "hardware.profile=analytic")
    keys = {fact.key for fact in header_differences(run, other)}
    assert {"cost_model", "hardware.profile", "inputs.hardware.profile.path"} <= keys
    header = msgspec.structs.replace(other.header, kind="engine", cost_model="measured")
    (other.path / HEADER).write_bytes(encode_header(header))
    keys = {fact.key for fact in header_differences(run, RunReader(other.path))}
    assert "cost_model" in keys
    assert not [key for key in keys if "profile" in key]


@pytest.mark.parametrize(
    ("name", "device", "same"),
    [
        ("h200", "NVIDIA H200", True),
        ("H200", "NVIDIA H200 NVL", True),
        ("rtx4090", "NVIDIA GeForce RTX 4090", True),
        ("l4", "NVIDIA L4", True),
        ("l4", "NVIDIA L40S", False),
        ("h100", "NVIDIA H200", False),
        ("a100", "NVIDIA A100-SXM4-80GB", True),
    ],
)
def test_names_of_gpus(name: str, device: str, same: bool) -> None:
    """As drivers tell them, in one word or in two."""
    assert is_gpu(name, device) is same
