"""Files that `workbench profile` reads: told apart by what they hold, and damage told in words."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from command_line import invoke
from profile_traces import STEP_KERNELS, graph_steps

from workbench.profile.latest_gaps import MEASURED_HERE, latest_stories

pytestmark = pytest.mark.usefixtures("own_folder")

DEEP = "[" * 200_000


def _with_ceilings(ceilings: str) -> str:
    """A trace that says what its GPU reaches."""
    return f'{{"traceEvents": [], "workbench": {{"ceilings": {ceilings}}}}}'


def _said(name: str, value: str) -> str:
    """A trace of nothing that says one thing of itself."""
    return f'{{"traceEvents": [], "workbench": {{"{name}": {value}}}}}'


def _event(times: str) -> str:
    """A trace of one kernel."""
    return f'{{"traceEvents": [{{"ph": "X", "cat": "kernel", "name": "a", {times}}}]}}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DEEP, "nested too deeply"),
        ("{", "it is no JSON: "),
        ('{"schema": "profile_gaps/v1"}', "`stories` is missing"),
        ('{"schema": "profile_gaps/v1", "stories": [1]}', "of another kind"),
        ('{"schema": "profile_gaps/v1", "stories": [{"what": 1}]}', "`unit` is missing"),
        ("[]", "of another kind"),
    ],
)
def test_what_are_no_gaps_is_told_in_words(own_folder: Path, text: str, said: str) -> None:
    """Of the command and of the interface, whatever the file holds."""
    MEASURED_HERE.parent.mkdir()
    MEASURED_HERE.write_text(text)
    result = invoke("profile", "gaps", "--from", str(MEASURED_HERE))
    assert result.exit_code == 1
    trouble = latest_stories().trouble
    assert trouble is not None
    for told in (result.stderr, trouble):
        assert said in told
        assert "Error(" not in told
        assert "defect" not in told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DEEP, "nested too deeply"),
        ("{", "it is no JSON: "),
        ('{"traceEvents": [{"ph": "X", "cat": "kernel"}]}', "`ts` is missing"),
        ('{"traceEvents": [1]}', "of another kind"),
        ('{"traceEvents": [{"ph": "X", "cat": []}]}', "of another kind"),
        ('{"traceEvents": [], "workbench": [1]}', "`workbench` is no object"),
        (_said("features", '"abc"'), "damaged `features`: it is no list of 13 numbers"),
        (_said("features", "[1, 2]"), "it is no list of 13 numbers"),
        (_said("features", "[-1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1]"), "`prefill_tokens` is -1"),
        (_said("features", "[0.5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]"), "has to be whole"),
        (_said("dtype", '"weird"'), "damaged `dtype`: 'weird' is none of bfloat16"),
        (_event('"ts": 1, "dur": -5'), "`dur` is -5"),
        (_event('"ts": Infinity, "dur": 1'), "`ts` is inf"),
        (_event('"ts": "1", "dur": 1'), "`ts` is '1'"),
        (_with_ceilings("[1]"), "damaged `ceilings`: a value in it is of another kind"),
        (_with_ceilings('{"copy_tb_s": 4}'), "damaged `ceilings`: `product_tflop_s` is missing"),
        (_with_ceilings('{"copy_tb_s": "x", "product_tflop_s": 1}'), "`copy_tb_s` is 'x'"),
        (_with_ceilings('{"copy_tb_s": 0, "product_tflop_s": 1}'), "`copy_tb_s` is 0"),
        (_with_ceilings('{"copy_tb_s": NaN, "product_tflop_s": 1}'), "`copy_tb_s` is nan"),
        (_with_ceilings('{"copy_tb_s": 4, "product_tflop_s": 1e999}'), "a number above 0"),
        (_with_ceilings('{"copy_tb_s": 4, "product_tflop_s": true}'), "`product_tflop_s` is True"),
    ],
)
def test_what_is_no_trace_is_told_in_words(own_folder: Path, text: str, said: str) -> None:
    """As a line without Python's names for what went wrong; compressed files likewise."""
    plain, packed = own_folder / "trace.json", own_folder / "trace.json.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    for path in (plain, packed):
        result = invoke("profile", "import", str(path))
        assert result.exit_code == 1
        assert said in result.stderr
        assert "Error(" not in result.stderr
        assert "defect" not in result.stderr
    packed.write_bytes(gzip.compress(text.encode())[:-12] + b"broken data!")
    result = invoke("profile", "import", str(packed))
    assert result.exit_code == 1
    assert str(packed) in result.stderr
    assert "defect" not in result.stderr


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('"0","copy","fast"', "read: kernel copy has no gpu__time_duration.sum"),
        ('"0"', "read: `Kernel Name` is missing"),
        (f'"0","{"x" * 200_000}","1"', "field larger than"),
    ],
)
def test_what_are_no_counters_is_told_in_words(own_folder: Path, row: str, said: str) -> None:
    """As a sentence, not as Python prints its errors."""
    counters = own_folder / "ncu.csv"
    counters.write_text(f'"ID","Kernel Name","gpu__time_duration.sum"\n"","","ns"\n{row}\n')
    result = invoke("profile", "import", str(counters))
    assert result.exit_code == 1
    assert said in result.stderr
    assert "defect" not in result.stderr


def test_traces_counters_and_exports_are_told_apart(own_folder: Path) -> None:
    """By what they are; with a model and a step their rates are counted."""
    trace = own_folder / "trace.json"
    trace.write_text(json.dumps({"traceEvents": graph_steps()}))
    result = invoke("profile", "import", str(trace))
    assert f"classes checked: {len(STEP_KERNELS)} of {len(STEP_KERNELS)}" in result.stdout
    assert "does not say which model" in result.stdout
    counters = own_folder / "ncu.csv"
    head = '"ID","Kernel Name","gpu__time_duration.sum","dram__bytes_read.sum"'
    counters.write_text(f'{head}\n"","","ns","byte"\n"0","_decode_attention_kernel","9000","9e6"\n')
    result = invoke("profile", "import", str(counters), "--model", "Qwen3-0.6B", "--step",
                    "decode:1x64")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "attention_decode" in result.stdout
    assert "DRAM/counted" in result.stdout
