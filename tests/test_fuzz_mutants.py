"""Planted bugs: each patch fits the sources, and the fuzzer finds a sample of them at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_mutants import MUTANTS, copy_sources, hunt, main, plant

# One per machine and kind of law, all killed within a second; `workbench fuzz --mutants` has all.
SAMPLE = ("evict-ignores-a-lock", "token-after-the-end", "freed-while-a-peer-writes")


def test_every_patch_has_its_place(tmp_path: Path) -> None:
    """A mutant whose place is gone would look as if it had been killed by nobody."""
    copy_sources(tmp_path)
    for mutant in MUTANTS:
        before = plant(mutant, tmp_path)
        assert (tmp_path / mutant.file).read_text() != before
        compile((tmp_path / mutant.file).read_text(), mutant.file, "exec")
        (tmp_path / mutant.file).write_text(before)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20


def test_the_sources_themselves_are_never_patched(tmp_path: Path) -> None:
    """A place that is there twice or not at all is refused."""
    copy_sources(tmp_path)
    plant(MUTANTS[0], tmp_path)
    with pytest.raises(ValueError, match="has 0 such places"):
        plant(MUTANTS[0], tmp_path)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_planted_bug_is_found(name: str, tmp_path: Path) -> None:
    """Within ten seconds of one core, by a run that can be kept."""
    (mutant,) = [mutant for mutant in MUTANTS if mutant.name == name]
    copy_sources(tmp_path / "copy")
    plant(mutant, tmp_path / "copy")
    took_s, runs, found = hunt(tmp_path / "copy", case=tmp_path / "case.ops.json")
    assert found is not None
    assert took_s < 10
    assert runs > 0
    assert (tmp_path / "case.ops.json").exists()


@pytest.mark.parametrize("name", [*SAMPLE, "no-number-stays-shared", "oldest-is-retracted"])
def test_the_case_of_a_mutant_still_breaks_a_law_of_it(name: str, tmp_path: Path) -> None:
    """A case that no longer leads to its bug would pass for ever and guard nothing."""
    (mutant,) = [mutant for mutant in MUTANTS if mutant.name == name]
    copy_sources(tmp_path)
    plant(mutant, tmp_path)
    case = Path(__file__).parent / "fuzz_regressions" / f"{name}.ops.json"
    replayed = subprocess.run(
        [sys.executable, "-B", "-m", "workbench", "fuzz", "--replay", str(case)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert replayed.returncode == 1, replayed.stderr
    assert "violation" in replayed.stdout


def test_a_survivor_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mutant that nobody finds is said to survive, and the exit code is 1."""
    monkeypatch.setattr("fuzz_mutants.hunt", lambda *_, **__: (10.0, 1, None))
    assert main([MUTANTS[0].name]) == 1
    assert "survives" in capsys.readouterr().out
