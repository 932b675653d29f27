"""`--set` changes any part of a scenario, and its mistakes point at the override itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenario_texts import BASE, error_of, errors_of, underlined, write

from workbench.scenario.schema import ClosedLoopLoad, FixedLength, Slo
from workbench.scenario.source import load_scenario


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A good scenario."""
    return write(tmp_path, BASE, "base.yaml")


def test_an_override_wins_over_the_file(base: Path) -> None:
    """A later value replaces the file's, and a later override an earlier one."""
    loaded = load_scenario(base, ["load.request_rate=20", "load.request_rate=30"])
    assert loaded.scenario.load.request_rate == 30
    assert loaded.overrides == ("load.request_rate=20", "load.request_rate=30")
    assert loaded.source_text == BASE


def test_values_are_yaml(base: Path) -> None:
    """Numbers, text, lists and whole mappings can be given; a mapping replaces what was there."""
    scenario = load_scenario(
        base,
        [
            "load={kind: closed_loop, max_concurrency: 8}",
            "report.percentiles=[50, 99]",
            "workload.prompt_len=100",
            "scheduler.prefix_cache.enabled=false",
            "description=a = b",
        ],
    ).scenario
    assert scenario.load == ClosedLoopLoad(kind="closed_loop", max_concurrency=8)
    assert scenario.report.percentiles == (50.0, 99.0)
    assert scenario.workload.prompt_len == FixedLength(kind="fixed", value=100)
    assert not scenario.scheduler.prefix_cache.enabled
    assert scenario.description == "a = b"


def test_parts_that_the_file_leaves_out_are_created(base: Path) -> None:
    """A path through absent mappings and lists makes them, with defaults for the rest."""
    scenario = load_scenario(
        base,
        [
            "deployment.pools.0.replicas=2",
            "deployment.pools.1.page_size=64",
            "slo.ttft_ms=300",
        ],
    ).scenario
    assert [(pool.replicas, pool.page_size) for pool in scenario.deployment.pools] == [
        (2, 16),
        (1, 64),
    ]
    assert scenario.slo == Slo(ttft_ms=300.0)


# (override, code, underlined, in the message, in the help)
MISTAKES = [
    ("load.request_rat=5", "S101", "request_rat", "unknown key `request_rat`", "`request_rate`?"),
    ("lod.request_rate=5", "S101", "lod", "unknown key `lod`", "did you mean `load`?"),
    ("deployment.pool.0.replicas=2", "S101", "pool", "key `pool`", "did you mean `pools`?"),
    ("load.request_rate=fast", "S103", "fast", "must be a number", "per second"),
    ("load.request_rate=", "S103", "request_rate", "must be a number, not empty", ""),
    ("load.request_rate=-3", "S105", "-3", "must be above 0", "per second"),
    ("load.kind=gama", "S104", "gama", "unknown kind `gama`", "did you mean `gamma`?"),
    ("load={kind: poison}", "S104", "poison", "unknown kind `poison`", "`poisson`?"),
    ("workload.prompt_len.value=5", "S112", "value", "is a single value", "replace it whole"),
    ("deployment.pools.1.replicas=2", "S112", "1", "a list of 0 entries", "0 writes the first one"),
    ("deployment.pools.x.replicas=2", "S103", "pools", "`pools` must be a list", ""),
    ("load.request_rate", "S112", "load.request_rate", "needs `=`", "--set load.request_rate=20"),
    ("=5", "S112", "=", "needs a path of keys", "--set load.request_rate=20"),
    ("load..kind=5", "S112", "load..kind", "needs a path of keys", ""),
    ("", "S112", "", "needs `=`", ""),
    ("name=[", "S107", "", "not valid YAML", ""),
    ("name={a: 1, a: 2}", "S106", "a", "duplicate key `a`", ""),
    ("schema=v7", "S109", "v7", "unknown scenario format `v7`", "workbench/scenario/v1"),
    ("workload={kind: trace, path: no.csv}", "S114", "no.csv", "`no.csv` does not exist", ""),
]


@pytest.mark.parametrize(("override", "code", "marked", "message", "help_"), MISTAKES)
def test_mistakes_point_at_the_override(
    base: Path, override: str, code: str, marked: str, message: str, help_: str
) -> None:
    """A mistake in an override is shown in the override, never at a line of the file."""
    error = next(error for error in errors_of(base, override) if error.code == code)
    assert f"--> --set {override}" in str(error)
    assert error.line is None
    assert underlined(error) == marked
    assert message in error.message
    assert help_ in error.help


def test_the_look_of_an_override_error(base: Path) -> None:
    """The caret stands under the part of the override that is wrong."""
    expected = """\
error[S101]: unknown key `request_rte`
  --> --set load.request_rte=20
                 ^^^^^^^^^^^
   = help: did you mean `request_rate`?"""
    assert str(error_of(base, "load.request_rte=20")) == expected


def test_changing_the_kind_shows_the_keys_that_are_left_over(base: Path) -> None:
    """A key of the old kind is an error in the file, which says to which kinds it belongs."""
    errors = errors_of(base, "load.kind=closed_loop", "load.max_concurrency=8")
    assert [(error.line, error.code) for error in errors] == [(11, "S101"), (12, "S101")]
    assert "is a key of kind `poisson`, `gamma`, `constant`" in errors[0].help


def test_errors_of_the_file_come_first_then_overrides_in_order(base: Path) -> None:
    """All errors appear: those of the file, then those of each override as they were given."""
    base.write_text(BASE.replace("h200", "h20"))
    errors = errors_of(base, "z=1", "seed=-1", "a=1")
    assert [error.code for error in errors] == ["S104", "S101", "S105", "S101"]


def test_an_override_repairs_the_file(base: Path) -> None:
    """A wrong value in the file that an override replaces is no error."""
    base.write_text(BASE.replace("h200", "h20"))
    assert load_scenario(base, ["hardware.gpu=l4"]).scenario.hardware.gpu == "l4"


def test_paths_in_overrides_start_at_the_current_folder(tmp_path: Path, monkeypatch) -> None:
    """A relative path in a file starts at the file's folder, one in `--set` at the current one."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "t.csv").touch()
    (tmp_path / "t.csv").touch()
    monkeypatch.chdir(tmp_path)
    workload = "{kind: trace, path: t.csv}"
    text = BASE[: BASE.index("workload")] + f"workload: {workload}\nload: {{kind: trace}}\n"
    write(tmp_path / "there", text, "s.yaml")
    in_file = load_scenario("there/s.yaml")
    overridden = load_scenario("there/s.yaml", [f"workload={workload}"])
    assert Path(in_file.scenario.workload.path) == Path("there/t.csv")
    assert Path(overridden.scenario.workload.path) == Path("t.csv")
    assert in_file.sha256 == overridden.sha256  # what is written counts, not where one stands


@pytest.mark.parametrize(
    ("pools", "allowed"),
    [
        ("[{}]", "0 changes, 1 appends the next one"),
        ("[{}, {}, {}]", "0 to 2 change, 3 appends the next one"),
    ],
)
def test_an_entry_too_far_says_which_there_are(base: Path, pools: str, allowed: str) -> None:
    """Those that are there, and the one that would be the next."""
    wrong = (f"deployment.pools={pools}", "deployment.pools.7.replicas=2")
    assert error_of(base, *wrong).help == allowed


@pytest.mark.parametrize(
    "override", ["deployment.pools.5.replicas=2", "deployment.pools.1.replicas=2"]
)
def test_an_override_that_fails_leaves_nothing_half_made(base: Path, override: str) -> None:
    """An entry that does not exist is one error, with none about parts made on the way to it."""
    error = error_of(base, override)
    assert error.code == "S112"
    assert "list of 0 entries" in error.message
