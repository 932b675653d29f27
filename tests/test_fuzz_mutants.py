"""Planted bugs: each patch fits the sources, and the fuzzer finds a sample of them at once."""

from __future__ import annotations

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


def test_a_survivor_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mutant that nobody finds is said to survive, and the exit code is 1."""
    monkeypatch.setattr("fuzz_mutants.hunt", lambda *_, **__: (10.0, 1, None))
    assert main([MUTANTS[0].name]) == 1
    assert "survives" in capsys.readouterr().out
