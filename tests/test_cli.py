"""The command line: exit codes, what goes to which stream, and help that helps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner, Result

from workbench.cli import app
from workbench.cli.failures import FailureReportingGroup, UsageError
from workbench.cli.overrides import (
    goodput_overrides,
    num_prompts_override,
    percentiles_override,
)
from workbench.workload.trace_errors import TooLongError, TooLongRowsError

COMMANDS = get_command(app).commands
WORKBENCH = [sys.executable, "-m", "workbench"]


def invoke(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner(env=env).invoke(app, arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    """Each command has a summary that fits its line, an example, and a word on every option."""
    command = COMMANDS[name]
    summary = command.help.splitlines()[0]
    assert summary in invoke("--help").stdout
    assert "Example" in command.epilog
    assert f"workbench {name}" in invoke(name, "--help").stdout
    for parameter in command.params:
        assert parameter.help, f"{parameter.name} has no help"


@pytest.mark.parametrize("group", ["kernels", "profile"])
def test_every_command_of_a_group_explains_itself(group: str) -> None:
    """As those of the first level do: its line in the list is whole, and it has an example."""
    listed = invoke(group, "--help").stdout
    assert "..." not in listed.partition("Examples:")[0].partition("Commands:")[2]
    for name, command in COMMANDS[group].commands.items():
        if not command.hidden:
            assert f"workbench {group} {name}" in command.epilog
            for parameter in command.params:
                assert parameter.help, f"{parameter.name} has no help"


def test_no_command_shows_the_help() -> None:
    """`workbench` alone is wrong usage: exit code 2 and the help, on stderr."""
    result = invoke()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr
    assert not result.stdout


def test_unknown_option_is_wrong_usage() -> None:
    """An option that does not exist ends with code 2 and names it on stderr."""
    result = invoke("simulate", "--no-such-option")
    assert result.exit_code == 2
    assert "--no-such-option" in result.stderr
    assert not result.stdout


# Failures


def failing_app(error: Exception) -> typer.Typer:
    """A program with the real group and one command, which raises `error`."""
    program = typer.Typer(cls=FailureReportingGroup, rich_markup_mode=None)

    @program.callback()
    def group(_debug: bool = typer.Option(False, "--debug", envvar="WORKBENCH_DEBUG")) -> None:
        """A group."""

    @program.command()
    def fail() -> None:
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UsageError("say it so"), 2, "error: say it so\n"),
        (TooLongError("2 requests"), 2, "error: 2 requests\n"),
        (TooLongRowsError("t.csv", "too long"), 2, "error: t.csv: too long\n"),
        (OSError(28, "Disk full", "out.json"), 1, "error: Disk full: out.json\n"),
        (OSError("odd"), 1, "error: odd\n"),
        (MemoryError("7 GiB"), 1, "error: not enough memory: 7 GiB; ask for fewer requests\n"),
        (MemoryError(), 1, "error: not enough memory; ask for fewer requests\n"),
    ],
)  # fmt: skip
def test_expected_failures_are_one_line(error: Exception, code: int, text: str) -> None:
    """An expected failure prints its message alone on stderr and ends with its code."""
    result = CliRunner().invoke(failing_app(error), ["fail"])
    assert (result.exit_code, result.stderr, result.stdout) == (code, text, "")


def test_defect_is_called_a_defect() -> None:
    """An exception that nobody foresaw names itself and says how to see more."""
    result = CliRunner().invoke(failing_app(ZeroDivisionError("1/0")), ["fail"])
    assert result.exit_code == 1
    assert "defect" in result.stderr
    assert "ZeroDivisionError: 1/0" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "env"), [(["--debug", "fail"], {}), (["fail"], {"WORKBENCH_DEBUG": "1"})]
)
def test_debug_lets_the_exception_through(arguments: list[str], env: dict[str, str]) -> None:
    """With --debug or WORKBENCH_DEBUG=1 the exception itself comes out, with its traceback."""
    error = UsageError("x")
    result = CliRunner(env=env).invoke(failing_app(error), arguments)
    assert result.exception is error


def test_interrupt_ends_with_130() -> None:
    """Ctrl-C outside a simulation ends with the code that shells expect."""
    result = CliRunner().invoke(failing_app(KeyboardInterrupt()), ["fail"])
    assert result.exit_code == 130


def test_scenario_error_is_wrong_usage(tmp_path: Path) -> None:
    """A bad scenario ends with code 2 and points at the line, without a traceback."""
    bad = tmp_path / "bad.yaml"
    bad.write_text("schema: workbench/scenario/v1\nname: bad\nburstyness: 0.5\n")
    result = invoke("simulate", str(bad))
    assert result.exit_code == 2
    assert f"{bad}:3:1" in result.stderr
    assert not result.stdout


@pytest.mark.parametrize("arguments", [["schema"], ["scenarios"], ["--help"]])
def test_closed_pipe_is_quiet(arguments: list[str]) -> None:
    """When the reader of stdout is gone the program ends with code 1 and says nothing."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end) as closed_pipe:
        process = subprocess.run(
            [*WORKBENCH, *arguments], stdout=closed_pipe, stderr=subprocess.PIPE, check=False
        )
    assert (process.returncode, process.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [["schema"], ["--help"]])
def test_full_disk_is_said_once(arguments: list[str]) -> None:
    """A result that cannot be written is a failure with one line on stderr."""
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [*WORKBENCH, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert process.returncode == 1
    assert process.stderr == "error: No space left on device\n"


# Commands


def test_init_writes_a_scenario_that_is_valid(tmp_path: Path) -> None:
    """`init` writes a valid scenario named after the file and leaves stdout alone."""
    from workbench.scenario.source import load_scenario

    file = tmp_path / "_my load!.yaml"
    result = invoke("init", str(file))
    assert (result.exit_code, result.stdout) == (0, "")
    assert load_scenario(file).scenario.name == "my-load-"


def test_init_copies_a_shipped_scenario(tmp_path: Path) -> None:
    """`init --template` writes the text of a shipped scenario, comments and all."""
    from workbench.scenario.source import shipped_text

    file = tmp_path / "mine.yaml"
    assert invoke("init", str(file), "--template", "quickstart").exit_code == 0
    assert file.read_text(encoding="utf-8") == shipped_text("quickstart")


def test_init_writes_to_stdout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`init -` prints the scenario and makes no file."""
    from workbench.scenario.source import shipped_text

    monkeypatch.chdir(tmp_path)
    assert invoke("init", "-", "--template", "quickstart").stdout == shipped_text("quickstart")
    assert not list(tmp_path.iterdir())


def test_init_overwrites_only_when_forced(tmp_path: Path) -> None:
    """`init` leaves an existing file alone unless told otherwise."""
    file = tmp_path / "mine.yaml"
    file.write_text("precious")
    assert invoke("init", str(file)).exit_code == 2
    assert file.read_text() == "precious"
    assert invoke("init", str(file), "--force").exit_code == 0
    assert file.read_text() != "precious"


def test_init_suggests_the_template_that_was_meant(tmp_path: Path) -> None:
    """A misspelt template ends with code 2 and the right name; nothing is written."""
    result = invoke("init", str(tmp_path / "mine.yaml"), "--template", "quickstrat")
    assert result.exit_code == 2
    assert "quickstart" in result.stderr
    assert not list(tmp_path.iterdir())


def test_scenarios_lists_all_with_their_lesson() -> None:
    """`scenarios` prints each shipped scenario with the first line of its comment."""
    from workbench.scenario.source import shipped_scenarios

    lines = invoke("scenarios").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [name for name, _ in shipped_scenarios()]
    assert all(lesson in line for line, (_, lesson) in zip(lines, shipped_scenarios(), strict=True))


def test_version_names_what_a_result_depends_on() -> None:
    """`version` names this program, Python and numpy by version."""
    import numpy as np

    printed = dict(line.split(None, 1) for line in invoke("version").stdout.splitlines())
    assert printed["numpy"] == np.__version__
    assert printed["python"].startswith(sys.version.split()[0])


def test_version_flag_is_the_command() -> None:
    """`--version` prints what `version` prints."""
    assert invoke("--version").stdout == invoke("version").stdout != ""


def test_unknown_command_suggests_the_one_that_was_meant() -> None:
    """A misspelt command ends with code 2 and the right name."""
    result = invoke("smulate")
    assert result.exit_code == 2
    assert "'simulate'" in result.stderr


# Flags that stand for keys


@pytest.mark.parametrize("command", ["chat", "calibrate"])
def test_a_model_in_the_wrong_place_is_told_the_right_one(command: str) -> None:
    """Where a command takes no such argument, but --model."""
    result = invoke(command, "demo-moe")
    assert result.exit_code == 2
    assert "(demo-moe): a model goes to --model" in result.stderr
    assert "--model" not in invoke("simulate", "quickstart", "demo-moe").stderr


@pytest.mark.parametrize(
    ("kind", "override"),
    [
        ("synthetic", "workload.num_requests=7"),
        ("shared_prefix", "workload.num_requests=7"),
        ("trace", "workload.limit=7"),
    ],
)
def test_num_prompts_means_the_kind_s_own_key(kind: str, override: str) -> None:
    """`--num-prompts` sets what limits the requests of this kind of workload."""
    assert num_prompts_override(kind, 7) == override


def test_num_prompts_does_not_guess() -> None:
    """Where requests follow from other keys `--num-prompts` is refused, with the key to use."""
    with pytest.raises(UsageError, match="num_conversations"):
        num_prompts_override("conversation", 7)


def test_goodput_is_the_slo() -> None:
    """`--goodput` takes the metrics of `vllm bench serve`, several in one text or in several."""
    assert goodput_overrides(["ttft:200 tpot:50", "e2el:9000"]) == [
        "slo.ttft_ms=200", "slo.tpot_ms=50", "slo.e2el_ms=9000",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["ttft", "ttft:", "itl:5", "ttft=200", "ttft:fast"])
def test_goodput_refuses_anything_else(text: str) -> None:
    """A limit that is not METRIC:MILLISECONDS is refused with an example."""
    with pytest.raises(UsageError, match="ttft:200 tpot:50"):
        goodput_overrides([text])


def test_percentiles_are_a_list() -> None:
    """`--metric-percentiles` takes what `vllm bench serve` takes."""
    assert percentiles_override("50, 99,99.9") == "report.percentiles=[50, 99, 99.9]"
    with pytest.raises(UsageError, match="no list of numbers"):
        percentiles_override("50;99")
