"""Demo models by name, wherever a model can be named: run, chat, simulate, the interface."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from textual.pilot import Pilot
from tui_pilot import current, drive, listed, shown, until
from typer.testing import CliRunner, Result

pytest.importorskip("triton")

from engine.core.model_spec import load_model_spec
from engine.core.token_ids import TokenBuffer
from engine.demo import DEMO_MODELS, demo_model_folder, recorded_behaviour
from workbench.cli import app
from workbench.cli.demo_load import CPU_REQUESTS, overrides_for_demo
from workbench.record.recorded_model import ChangedModelError, recorded_model
from workbench.record.run_record import RunReader
from workbench.running.engine_prompts import RealPrompts, TextPrompts
from workbench.running.engine_setup import EngineOptions, is_demo, runner_config
from workbench.scenario.errors import ScenarioErrors
from workbench.scenario.source import load_scenario
from workbench.tui.app import WorkbenchApp
from workbench.tui.scenarios.draft import Draft, assess
from workbench.tui.scenarios.form_rows import form_rows
from workbench.workload.lengths import Recorded
from workbench.workload.workload import build_workload

CPU = EngineOptions(model="demo-dense", device="cpu")
SHORT = ("--set", "workload.output_len=4", "--set", "workload.prompt_len=40")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_a_demo_model_is_served_by_name(name: str) -> None:
    """From the command line and from the scenario alike, under its own name."""
    flags = ["--num-prompts", "3", "--set", "load={kind: all_at_once}", "--device", "cpu", *SHORT]
    result = invoke("run", "quickstart", "--model", name.upper(), *flags)
    assert result.exit_code == 0, result.stderr
    header = RunReader(Path("runs/quickstart-1")).header
    assert (header.model, header.engine["model"]) == (name.upper(), name.upper())
    assert "prompts are text that the demo models were not trained on" in header.notes
    assert "request 0: …" in result.stderr
    result = invoke("run", "quickstart", "--set", f"model.name={name}", "--quiet", "--json", *flags)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["completed"] == 3
    assert not result.stderr
    assert RunReader(Path("runs/quickstart-2")).header.model == name


def test_the_model_of_a_run_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was, whatever the current folder is and holds; one that was changed is refused."""
    shipped = demo_model_folder("demo-draft")
    assert shipped is not None
    shutil.copytree(shipped, "demo-draft")
    flags = ["--num-prompts", "1", "--set", "load={kind: all_at_once}", "--device", "cpu", *SHORT]
    result = invoke("run", "quickstart", "--model", "./demo-draft", "--quiet", *flags)
    assert result.exit_code == 0, result.stderr
    header = RunReader(Path("runs/quickstart-1")).header
    monkeypatch.chdir("/")
    assert recorded_model(header).num_layers == load_model_spec(str(shipped)).num_layers
    with (tmp_path / "demo-draft" / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(ChangedModelError, match=r"config\.json has changed since the run"):
        recorded_model(header)


def test_a_folder_of_that_name_comes_first() -> None:
    """What a person has put here counts over what ships."""
    loaded = load_scenario("quickstart")
    assert is_demo(loaded.scenario, CPU)
    shipped = str(demo_model_folder("demo-dense"))
    assert runner_config(loaded, CPU).model == shipped
    Path("demo-dense").mkdir()
    assert not is_demo(loaded.scenario, CPU)
    assert runner_config(loaded, CPU).model == "demo-dense"


def test_random_weights_stay_random() -> None:
    """`--load-format dummy` makes weights of the shape, for a demo model like for any other."""
    loaded = load_scenario("quickstart")
    dummy = replace(CPU, load_format="dummy")
    assert not is_demo(loaded.scenario, dummy)
    assert runner_config(loaded, dummy).model == "demo-dense"
    assert overrides_for_demo(loaded, dummy, []) == []


def test_a_cpu_serves_a_part_and_says_so() -> None:
    """Fewer requests, prompts that fit; but what is given on the command line stands."""
    loaded = load_scenario("quickstart")
    everything = overrides_for_demo(loaded, CPU, [])
    assert everything == [
        f"workload.num_requests={CPU_REQUESTS}",
        "load.warmup_requests=4",
        "too_long=truncate",
    ]
    assert overrides_for_demo(loaded, CPU, ["workload.num_requests=70"]) == everything[1:]
    assert overrides_for_demo(loaded, CPU, ["load={kind: all_at_once}"]) == [
        everything[0],
        everything[2],
    ]
    fits = load_scenario("quickstart", ["workload.num_requests=9", "workload.prompt_len=50",
                                        "load.warmup_requests=0"])  # fmt: skip
    assert overrides_for_demo(fits, CPU, []) == []
    assert overrides_for_demo(loaded, EngineOptions(load_format="dummy"), []) == []


@pytest.mark.parametrize(
    "number", [("--num-prompts", "5"), ("--set", "workload.num_requests=5")], ids=["flag", "set"]
)
def test_a_number_below_the_warm_up_lowers_it(number: tuple[str, str]) -> None:
    """A few requests of a scenario that warms up with a hundred are served, and it is said."""
    flags = ("--model", "demo-draft", "--device", "cpu", *SHORT, "--set", "load.request_rate=50")
    result = invoke("run", "quickstart", *number, *flags)
    assert result.exit_code == 0, result.stderr
    assert "note: so that a demo model can serve it: load.warmup_requests=1" in result.stderr
    record = RunReader(Path("runs/quickstart-1"))
    assert record.header.measure.warmup_requests == 1
    result = invoke("run", "quickstart", *number, "--load-format", "dummy", "--device", "cpu")
    assert result.exit_code == 2
    assert "100 warm-up requests leave none of 5" in result.stderr
    result = invoke("run", "quickstart", *number, *flags, "--set", "load.warmup_requests=5")
    assert result.exit_code == 2
    assert "5 warm-up requests leave none of 5" in result.stderr


def common_prefix(a: TokenBuffer, b: TokenBuffer, of: int) -> int:
    same = a.ids(0, of) == b.ids(0, of)
    return of if same.all() else int(np.argmin(same))


@pytest.mark.parametrize("settings", [(), ("workload.num_groups=1",)])
def test_text_shares_what_ids_share(settings: tuple[str, ...]) -> None:
    """Two prompts of text begin alike for as long as the synthetic ones do."""
    scenario = load_scenario("engine_on_cpu", settings).scenario
    workload = build_workload(scenario, vocab_size=4096).workload

    def prompts(kind: Callable[..., RealPrompts]) -> list[TokenBuffer]:
        return [*map(kind(workload, 4096, 3), range(12))]

    ids, texts = prompts(RealPrompts), prompts(TextPrompts)
    for i in range(12):
        for j in range(i):
            of = int(min(workload.prompt_tokens[i], workload.prompt_tokens[j]))
            assert common_prefix(texts[i], texts[j], of) == common_prefix(ids[i], ids[j], of)
    again = prompts(TextPrompts)
    assert all(
        (a.ids(0, len(a)) == b.ids(0, len(b))).all() for a, b in zip(texts, again, strict=True)
    )


def test_prompts_are_text() -> None:
    """But for the first id, which says whose prompt it is, they are pieces of the shipped text."""
    scenario = load_scenario("quickstart", ["workload.prompt_len=60"]).scenario
    workload = build_workload(scenario, vocab_size=4096).workload
    prompts = TextPrompts(workload, 4096, 0)
    text = "".join(map(chr, prompts._text))
    for request_id in range(20):
        ids = prompts(request_id).ids(0, 60)
        assert ids[0] == request_id
        assert "".join(map(chr, ids[1:])) in text + text[:60]


def test_lengths_that_were_recorded_are_drawn() -> None:
    """Each drawn length is one of the recorded ones, as often as it was recorded."""
    recorded = recorded_behaviour("output_lengths")["demo-dense"]["output_tokens"]
    assert len(recorded) == 512
    setting = "workload.output_len={kind: recorded, model: demo-dense}"
    scenario = load_scenario("quickstart", [setting, "workload.num_requests=40000"]).scenario
    drawn = build_workload(scenario, vocab_size=4096).workload.output_tokens
    assert set(drawn.tolist()) == set(recorded)
    cut = recorded.count(1024) / len(recorded)
    assert np.mean(drawn == 1024) == pytest.approx(cut, abs=5 * (cut / 40000) ** 0.5)
    assert np.mean(drawn) == pytest.approx(np.mean(recorded), rel=0.02)
    assert scenario.workload.output_len.bounds == (min(recorded), max(recorded))


def test_only_recorded_models_have_recorded_lengths() -> None:
    """Another model's name is refused, with those that there are."""
    with pytest.raises(ScenarioErrors, match="demo-dense"):
        load_scenario("quickstart", ["workload.output_len={kind: recorded, model: Qwen3-8B}"])
    with pytest.raises(ValueError, match="at least one"):
        Recorded(())


def test_the_interface_serves_real_weights() -> None:
    """Of a demo model the engine takes its own weights, of others random ones, unless told."""
    draft = Draft.of("quickstart", "run", "items").with_setting("workload.output_len", "50")
    draft = draft.with_setting("workload.prompt_len", "500")
    for model, is_random in (("demo-dense", False), ("Qwen3-0.6B", True)):
        found = assess(draft.with_setting("model.name", model))
        assert found.ready
        assert ("dummy" in found.command.arguments) == is_random
        rows = {row.key: row.value for row in form_rows(found.draft, found.loaded.resolved)}
        assert rows["weights"] == ("dummy" if is_random else "auto")
    told = replace(draft.with_setting("model.name", "demo-dense"), dummy_weights=True)
    assert "dummy" in assess(told).command.arguments


def test_the_shipped_scenario_runs_both_ways() -> None:
    """`demo_model` is simulated and served, and the same requests come of it."""
    few = ("demo_model", "--num-prompts", "4", "--json", "--set", "load={kind: all_at_once}")
    simulated = json.loads(invoke("simulate", *few).stdout)
    served = json.loads(invoke("run", *few, "--device", "cpu", "--set",
                               "workload.output_len=5").stdout)  # fmt: skip
    assert simulated["completed"] == served["completed"] == 4
    assert simulated["total_input_tokens"] == served["total_input_tokens"]
    lengths = recorded_behaviour("output_lengths")["demo-dense"]["output_tokens"]
    requests = RunReader(Path("runs/demo_model-1")).table("requests")
    assert set(requests["output_tokens"].tolist()) <= set(lengths)


def test_the_interface_runs_the_engine_on_it() -> None:
    """`r` on the shipped scenario serves the real weights and shows the run as it goes."""

    async def journey(app: WorkbenchApp, pilot: Pilot[None]) -> None:
        screen = await listed(app, pilot)
        draft = screen.draft
        assert draft is not None
        draft = draft.with_setting("workload.num_requests", "3")
        screen.change_draft(draft.with_setting("workload.output_len", "12"))
        await until(pilot, lambda: "num_requests=3" in (screen.command_line() or ""))
        await pilot.press("r")
        await shown(app, pilot, "live")
        opened = await current(app, pilot)
        assert opened.store.header.kind == "engine"
        assert opened.store.header.model == "demo-dense"
        assert opened.store.header.engine["load_format"] == "auto"
        await until(pilot, lambda: not opened.running)
        await pilot.press("q")

    drive(journey, scenario="demo_model")
