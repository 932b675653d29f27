"""Drafts of scenarios: problems at their line, the command that runs them, forms, saved files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from recorded_runs import recorded

from workbench.running.simulate import prepare
from workbench.scenario.source import load_scenario, shipped_names, shipped_text
from workbench.tui.scenarios.catalogue import (
    RunShelf,
    file_entries,
    listed_as,
    scenario_entries,
    shipped_entries,
)
from workbench.tui.scenarios.draft import Draft, assess, assess_run
from workbench.tui.scenarios.form_rows import form_rows, in_short
from workbench.tui.scenarios.saving import save_draft, with_settings


def draft_of(name: str = "quickstart") -> Draft:
    return Draft.of(name, "simulate", "pages")


def resolved_by(arguments: tuple[str, ...]) -> dict[str, object]:
    """What a command line `simulate NAME --set ...` makes of its scenario."""
    settings = [text for flag, text in pairwise(arguments) if flag == "--set"]
    return load_scenario(arguments[1], settings).resolved


@pytest.mark.parametrize("name", [name for name in shipped_names() if "trace" not in name])
def test_every_shipped_scenario_is_ready(name: str) -> None:
    """No errors, a preview, an estimate, and the plain command."""
    found = assess(draft_of(name))
    assert found.ready
    assert not found.errors
    assert found.preview is not None
    assert found.estimate is not None
    assert found.command is not None
    assert found.command.shown() == f"workbench simulate {name} --detail pages"


def test_changes_of_form_and_text_are_in_the_command() -> None:
    """The command makes the very scenario that the draft is, whichever way it was changed."""
    draft = draft_of().with_setting("load.request_rate", "33")
    draft = draft.with_setting("workload.prompt_len", "{kind: uniform, min: 1, max: 99}")
    draft = draft.with_text(draft.text.replace("warmup_requests: 100", "warmup_requests: 7"))
    draft = draft.with_text(draft.text.replace("gpu: h200", "gpu: h100"))
    found = assess(draft)
    assert found.command is not None
    assert found.loaded is not None
    assert resolved_by(found.command.arguments) == found.loaded.resolved
    assert "load.warmup_requests=7" in found.command.arguments


def test_a_mistake_is_named_at_its_line_with_a_fix() -> None:
    """As on the command line: the line, what is wrong, what would do."""
    draft = draft_of()
    found = assess(draft.with_text(draft.text.replace("poisson, request_rate", "poisson, rate")))
    assert not found.ready
    line = 1 + draft.text[: draft.text.index("poisson, request_rate")].count("\n")
    named = [error for error in found.errors if error.line == line]
    assert any("rate" in error.message for error in named)
    assert any("request_rate" in error.help for error in named)


def test_a_wrong_value_of_the_form_is_named() -> None:
    """An error of a setting points at the setting."""
    found = assess(draft_of().with_setting("load.request_rate", "fast"))
    (error,) = found.errors
    assert error.span is not None
    assert error.span.source.text == "load.request_rate=fast"


def test_a_model_that_does_not_fit_is_refused_with_the_sum() -> None:
    """Memory is checked before anything runs."""
    found = assess(draft_of().with_setting("model.name", "Llama-3.1-70B"))
    assert not found.ready
    assert any("GiB" in error.help for error in found.errors)


def test_a_recorded_run_is_previewed_wherever_its_files_are() -> None:
    """Its scenario names files beside itself, which are not beside the record; or they are gone."""
    header = prepare(load_scenario("engine_on_cpu"), "none").header
    found = assess_run(header)
    assert found.preview is not None
    assert found.preview.requests == 40
    assert found.estimate is not None
    served = assess_run(msgspec.structs.replace(header, kind="engine", gpu="cpu"))
    assert served.preview is not None
    assert served.deployment is None  # the scenario's GPU did not serve it
    facts = msgspec.structs.replace(header.inputs["model.path"], path="gone/model.json")
    lost = assess_run(msgspec.structs.replace(header, inputs={"model.path": facts}))
    assert lost.loaded is None
    assert "gone/model.json" in str(lost.trouble)


def test_a_trace_that_is_missing_is_no_crash(tmp_path: Path) -> None:
    """A scenario that needs a file says so, and works once the file is named."""
    assert not assess(draft_of("azure_trace")).ready
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.0000000,100,20\n2024-05-10 00:00:01.0000000,80,10\n"
    )
    found = assess(draft_of("azure_trace").with_setting("workload.path", str(trace)))
    assert found.trouble is None
    assert found.ready
    assert found.preview is not None
    assert found.preview.requests == 2


@pytest.mark.parametrize("name", [name for name in shipped_names() if "trace" not in name])
def test_the_form_has_every_key_and_every_value_is_accepted(name: str) -> None:
    """Setting each row of the form to the value that it shows changes nothing."""
    found = assess(draft_of(name))
    assert found.loaded is not None
    rows = form_rows(found.draft, found.loaded.resolved)
    assert len({row.key for row in rows}) == len(rows) > 40
    draft = draft_of(name)
    for row in rows:
        if row.section != "run" and not row.key.endswith(".path"):
            draft = draft.with_setting(row.key, row.value or "null")
    again = assess(draft)
    assert again.loaded is not None, again.errors
    assert again.loaded.resolved == found.loaded.resolved


def test_few_values_are_offered() -> None:
    """Keys that take one of few values list them; each is accepted."""
    found = assess(draft_of())
    assert found.loaded is not None
    rows = {row.key: row for row in form_rows(found.draft, found.loaded.resolved)}
    assert rows["scheduler.policy"].options == ("fcfs", "lpm", "priority")
    assert "h200" in rows["hardware.gpu"].options
    for policy in rows["scheduler.policy"].options:
        assert assess(draft_of().with_setting("scheduler.policy", policy)).ready


def test_distributions_are_shown_in_short() -> None:
    """Without braces and commas."""
    assert in_short("{kind: uniform, min: 1, max: 9}") == "uniform min 1 max 9"
    assert in_short("[1, 2]") == "[1, 2]"


def test_saving_writes_the_form_into_the_text(tmp_path: Path) -> None:
    """The file is the draft, and keeps its comments."""
    draft = draft_of().with_setting("load.request_rate", "31")
    draft = draft.with_setting("deployment.pools.0.max_running_requests", "12")
    path = tmp_path / "mine.yaml"
    assert save_draft(draft, path) is None
    found = assess(draft)
    assert found.loaded is not None
    assert load_scenario(path).resolved == found.loaded.resolved
    assert path.read_text().splitlines()[0] == draft.text.splitlines()[0]
    assert with_settings(draft_of()) == draft_of().text


def test_a_wrong_draft_is_not_saved(tmp_path: Path) -> None:
    """It says why, and writes nothing."""
    path = tmp_path / "mine.yaml"
    trouble = save_draft(draft_of().with_setting("load.request_rate", "-1"), path)
    assert trouble is not None
    assert trouble.startswith("not saved")
    assert not path.exists()


def test_the_list_has_shipped_files_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shipped scenarios by name, files that are scenarios, runs with outcome, newest first."""
    monkeypatch.chdir(tmp_path)
    assert [entry.name for entry in shipped_entries()] == shipped_names()
    Path("mine.yaml").write_text("# My own.\nschema: workbench/scenario/v1\n")
    Path("other.yaml").write_text("key: value\n")
    (entry,) = file_entries(Path())
    assert (entry.title, entry.note) == ("mine.yaml", "My own")
    assert RunShelf(Path("runs")).entries() == []
    recorded("workload.num_requests=20", "load.warmup_requests=0")
    (Path("runs") / "no-run").mkdir()
    (run,) = RunShelf(Path("runs")).entries()
    assert run.run is not None
    assert run.run.outcome == "100.0% slo"
    assert run.run.age().endswith("s")


def test_each_scenario_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a clone, too; a copy with changes stands in the place of the shipped one and says so."""
    monkeypatch.chdir(tmp_path)
    Path("scenarios").mkdir()
    names = shipped_names()
    for name in names:
        Path(f"scenarios/{name}.yaml").write_text(shipped_text(name), encoding="utf-8")
    assert [entry.name for entry in scenario_entries(Path())] == names
    file = "scenarios/moe.yaml"
    listed = [entry.name for entry in scenario_entries(Path(), file)]  # asked for by its path
    assert listed == [*(name for name in names if name != "moe"), file]
    Path(file).write_text("# Mine.\n" + shipped_text("moe"), encoding="utf-8")
    Path("own.yaml").write_text("schema: workbench/scenario/v1\n")
    entries = scenario_entries(Path())
    assert [entry.name for entry in entries] == [
        *(n for n in names if n != "moe"),
        "own.yaml",
        file,
    ]
    assert (entries[-1].kind, entries[-1].note) == ("file", "Mine")
    assert [entry.stands_for for entry in entries] == [""] * len(names) + ["moe"]
    assert listed_as(entries, "moe") == file  # what was selected before is selected still
    assert listed_as(entries, "routers") == "routers"
    elsewhere = tmp_path / "beside.yaml"
    Path("own.yaml").rename(elsewhere)
    monkeypatch.chdir(tmp_path / "scenarios")
    assert str(elsewhere) in [entry.name for entry in scenario_entries(Path(), str(elsewhere))]
