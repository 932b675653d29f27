"""`--model`: what no model is called is refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("triton")

from engine.demo import demo_model_folder
from workbench.cli import app
from workbench.cli.calibrate import _config
from workbench.cli.failures import UsageError
from workbench.cli.model_names import check_model_name

COMMANDS = [
    ("chat",),
    ("run", "quickstart"),
    ("profile", "timeline", "--step", "decode:1x8"),
    ("profile", "timeline", "quickstart"),
    ("profile", "roofline", "--step", "decode:1x8"),
    ("calibrate",),
]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_misspelt_name_is_corrected(command: tuple[str, ...]) -> None:
    """Exit code 2, with the name that was meant and all of the demo models."""
    result = invoke(*command, "--model", "demo-dens")
    assert result.exit_code == 2, result.stderr
    assert "no model is called `demo-dens`: did you mean `demo-dense`?" in result.stderr
    assert "demo models: `demo-dense`, `demo-draft`, `demo-moe`" in result.stderr
    result = invoke(*command, "--model", "")
    assert result.exit_code == 2, result.stderr
    assert "--model is empty: give a demo model" in result.stderr


def test_cards_have_no_weights() -> None:
    """A model card is a name with random weights only; a cached model is suggested."""
    with pytest.raises(UsageError, match="is a model card, which has no weights(.|\n)*--load-for"):
        check_model_name("Qwen3-0.6B")
    with pytest.raises(UsageError, match="is a model card") as error:
        check_model_name("Qwen3-0.6B", has_dummies=False)
    assert "--load-format" not in str(error.value)
    check_model_name("qwen3-0.6b", "dummy")
    with pytest.raises(UsageError, match=r"did you mean `Qwen3-0.6B`"):
        check_model_name("Qwen3-0.6", "dummy")
    Path("cache/models--me--tiny-one").mkdir(parents=True)
    with pytest.raises(UsageError, match="did you mean `me/tiny-one`"):
        check_model_name("tiny-on")


def test_what_may_be_a_model_is_left_to_the_engine() -> None:
    """No name, a demo model in any case, a folder that is here, a path, and an org/name."""
    Path("mine").mkdir()
    for name in (None, "DEMO-Moe", "mine", "./none", "org/name"):
        check_model_name(name)


def test_a_step_runs_the_weights_that_ship() -> None:
    """`profile --step` and `calibrate` serve a demo model by its name, wherever they start."""
    result = invoke("profile", "timeline", "--step", "decode:1x8", "--model", "demo-draft",
                    "--device", "cpu", "--steps", "1", "--output", "trace", "--quiet",
                    "--json")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["device"] == "cpu"
    shipped = str(demo_model_folder("demo-draft"))
    assert _config("demo-draft", "auto", "cpu", None).model == shipped
    assert _config("demo-draft", "dummy", "cpu", None).model == "demo-draft"
