"""`workbench fuzz` as a command: what it is asked, what it says, which files it takes."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from command_line import invoke
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.fuzz.case_file import CaseFileError, repeat_file
from workbench.fuzz.machines import MACHINES

REGRESSIONS = Path(__file__).with_name("fuzz_regressions")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "soon"], "--budget is 'soon': give a time such as 60s, 5m or 8h"),
        (["--budget", "0s"], "give a time"),
        (["--faults", "abort,flood"], "no flood; there are abort"),
        (["--machines", "clutser"], "no clutser; there are cache, cluster"),
        (["--faults", "abort,leap", "--machines", "cluster"], "cluster: no leap; there are abort"),
        (["--replay", "nothing.json"], "nothing.json cannot be read"),
        (["--replay", "nothing.json", "--seed", "1"], "--replay stands alone: leave out --seed"),
        (["--mutants", "--jobs", "2"], "--mutants stands alone: leave out --jobs"),
    ],
)
def test_wrong_usage_says_what_is_right(arguments: list[str], message: str) -> None:
    result = invoke("fuzz", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_mutants_need_the_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel has no tests, and says so."""
    import workbench

    monkeypatch.setattr(workbench, "__file__", str(tmp_path / "workbench" / "__init__.py"))
    result = invoke("fuzz", "--mutants")
    assert result.exit_code == 2
    assert "--mutants needs the source tree" in result.output


def test_an_hour_must_reach_every_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is long enough fails if some fault or line of the core never happened."""
    monkeypatch.setattr("workbench.fuzz.campaign.HOUR_S", 0.0)
    result = invoke("fuzz", "--seed", "3", "--runs", "64", "--machines", "cache,scheduler")
    assert result.exit_code == 1
    assert "not reached: " in result.output
    assert "a run of an hour must reach all of them" in result.output


def test_a_good_minute_says_so() -> None:
    """Seed, commit, canary, counts, no violation."""
    result = invoke("fuzz", "--seed", "11", "--runs", "64")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("seed=11 commit=")
    assert "64 runs" in result.output
    assert "0 violations" in result.output


CASE = json.loads((REGRESSIONS / "token-after-the-end.ops.json").read_text())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_case_file_is_refused_with_its_name(data: st.DataObject) -> None:
    """Whatever stands in it: a clear error that names the file, or a run."""
    case = json.loads(json.dumps(CASE))
    place = data.draw(st.sampled_from(["text", "machine", "setup", "operations", "seed", "config"]))
    junk = st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=5,
    )
    if place == "config":
        key = data.draw(st.sampled_from(sorted(case["setup"])))
        case["setup"][key] = data.draw(junk)
    elif place != "text":
        case[place] = data.draw(junk)
    text = data.draw(st.binary(max_size=50)) if place == "text" else json.dumps(case).encode()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "case.json"
        path.write_bytes(text)
        with suppress(CaseFileError):
            repeat_file(path, MACHINES)
            return
        with pytest.raises(CaseFileError, match="case.json"):
            repeat_file(path, MACHINES)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (["dance", 1], "operation 1 is ['dance', 1]; there are abort, "),
        (["abort"], "operation 1 is ['abort']; abort takes 1 whole number "),
        (["abort", "x"], "abort takes 1 whole number "),
        (["abort", True], "abort takes 1 whole number "),
        (["plan", 1], "plan takes no whole numbers"),
        ([], "operation 1 is []"),
    ],
)
def test_an_operation_that_no_machine_knows_is_no_violation(
    operation: list[object], message: str, tmp_path: Path
) -> None:
    """Exit code 1 says that a law is broken; a damaged file is wrong input."""
    path = tmp_path / "case.json"
    path.write_text(json.dumps(CASE | {"operations": [operation]}))
    result = invoke("fuzz", "--replay", str(path))
    assert result.exit_code == 2
    assert message in result.output
    assert str(path) in result.output


@pytest.mark.parametrize("every", ["a", 0, -1, True])
def test_a_setting_that_no_run_draws_is_no_violation(every: object, tmp_path: Path) -> None:
    """Nor is text of nothing but brackets."""
    path = tmp_path / "case.json"
    path.write_text(json.dumps(CASE | {"setup": CASE["setup"] | {"every": every}}))
    result = invoke("fuzz", "--replay", str(path))
    assert result.exit_code == 2
    assert f"every is {every!r}, not a whole number from 1 on" in result.stderr
    path.write_text("[" * 100_000)
    assert invoke("fuzz", "--replay", str(path)).exit_code == 2
