"""The file of kernel tables: what is written is read again, and nonsense is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from made_kernels import made_kernels

from engine.core.model_spec import load_model_spec, model_card_names
from engine.profiling.kernel_cases import OPS as MEASURED_OPS
from engine.profiling.kernel_cases import SHARDS, Draw, KernelLimits, design_kernels, draw_experts
from engine.profiling.kernel_cases import weight_bytes as weights_of
from simulator import shipped_profiles
from simulator.composition.kernel_file import (
    OPS,
    encode_kernel_file,
    is_kernel_file,
    read_kernel_file,
)
from simulator.profile import ProfileError

TABLES = made_kernels(("Qwen3-0.6B", "Qwen3-30B-A3B"))
SERIES = TABLES.series[[each.op for each in TABLES.series].index("decode_attention") :]
CARDS = [load_model_spec(name) for name in model_card_names()]


def test_what_is_written_is_read_again(tmp_path: Path):
    """Reading a file gives what was written, series and composition."""
    path = tmp_path / "kernels-made.json"
    path.write_bytes(encode_kernel_file(TABLES))
    assert is_kernel_file(path)
    assert read_kernel_file(path) == TABLES


def test_what_ships_can_be_read():
    """Kernel tables in the package are those of a known GPU, under their own name."""
    folder = Path(shipped_profiles.__file__).with_name("profiles")
    for path in folder.glob("kernels-*.json"):
        kernels = read_kernel_file(path)
        assert path.stem == kernels.name
        assert kernels.composition.errors, "how good composed steps are must be known"
        assert shipped_profiles.read_kernel_identity(path) == kernels.identity


def changed(**changes: object) -> str:
    """Why a file whose first series was changed is refused."""
    first = msgspec.structs.replace(SERIES[0], **changes)
    wrong = msgspec.structs.replace(TABLES, series=(first, *SERIES[1:]))
    with pytest.raises(ProfileError) as caught:
        encode_kernel_file(wrong)
    return str(caught.value)


def test_series_that_contradict_themselves_are_refused():
    """The complaint names the series and what is wrong with it."""
    first = SERIES[0]
    where = f"kernels-made: the series of {first.op} {list(first.sizes)}"
    no_op = f"kernels-made: the series of conv {list(first.sizes)}: no such op; ops: "
    assert changed(op="plan").endswith(f"plan {list(first.sizes)} takes no sizes")
    assert changed(op="conv") == no_op + ", ".join(OPS)
    assert changed(sizes=(1,)).endswith("[1] needs the sizes heads, kv_heads, head_dim")
    assert changed(ns=first.ns[1:]) == f"{where} has columns of different lengths"
    twice = (first.points[1], *first.points[1:])
    assert changed(points=twice) == f"{where} has a point twice"
    short = (first.points[0][:1], *first.points[1:])
    assert changed(points=short) == f"{where} has a point that is not of requests, context"
    assert "Expected `float` > 0.0" in changed(ns=(0.0, *first.ns[1:]))
    nothing = {"points": (), "ns": (), "spread_ns": (), "repeats": ()}
    assert changed(**nothing) == f"{where} is empty"
    second = SERIES[1]
    assert second.op == first.op
    again = msgspec.structs.asdict(second)
    assert changed(**again).endswith(f"{list(second.sizes)} is there twice")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"schema": "kernels/v0"}', "is 'kernels/v0', this version reads 'kernels/v1'"),
        ('{"schema": "profile/v3"}', "is 'profile/v3', this version reads 'kernels/v1'"),
        ("{", "holds no kernel tables: Input data was truncated"),
        ('{"schema": "kernels/v1", "name": 3}', "holds no kernel tables: Expected `str`"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, complaint: str):
    """The complaint names the file and what it is instead."""
    path = tmp_path / "kernels-other.json"
    path.write_text(text)
    with pytest.raises(ProfileError, match=complaint) as caught:
        read_kernel_file(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ProfileError, match="No such file"):
        read_kernel_file(tmp_path / "none.json")
    assert not is_kernel_file(tmp_path / "none.json")


def test_fields_that_nobody_knows_are_refused(tmp_path: Path):
    """A misspelt field is no field that is missing."""
    values = json.loads(encode_kernel_file(TABLES))
    values["composition"]["corection"] = {}
    path = tmp_path / "kernels-made.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ProfileError, match="unknown field `corection`"):
        read_kernel_file(path)


# What is measured.


def test_the_file_names_numbers_as_the_measurement_does():
    """Ops, their sizes and axes are the same where they are measured and where they are read."""
    assert {op: (names.sizes, names.axes) for op, names in MEASURED_OPS.items()} == dict(OPS)


def test_every_op_is_measured_and_nothing_twice():
    """The design has all ops of the cards, of all shards, each case once and within the limits."""
    limits = KernelLimits(weight_bytes=4 << 30, kv_bytes=8 << 30, tokens=8192)
    cases = design_kernels(CARDS, limits)
    assert {case.op for case in cases} == set(OPS)
    assert len(set(cases)) == len(cases)
    assert all(weights_of(case) <= limits.weight_bytes for case in cases)
    shapes = {case.sizes for case in cases if case.op == "norm_linear"}
    assert {(6144 // tp, 4096) for tp in SHARDS} <= shapes  # Llama-3.1-8B
    small = design_kernels(CARDS, KernelLimits(weight_bytes=1 << 20, kv_bytes=1 << 16, tokens=16))
    assert small
    assert all(case.point[0] <= 16 for case in small)


def test_experts_are_drawn_as_the_case_says():
    """Experts of a token differ, come from the pool alone, and some come more often if skewed."""
    even, few, skewed = Draw(64), Draw(16), Draw(64, 100)
    for draw in (even, few, skewed):
        drawn = draw_experts(500, 64, 8, draw)
        assert drawn.shape == (500, 8)
        assert all(len(set(row)) == 8 for row in drawn.tolist())
        assert (drawn == draw_experts(500, 64, 8, draw)).all()
    loads = {draw: sorted(map(draw_experts(500, 64, 8, draw).ravel().tolist().count, range(64)))
             for draw in (even, few, skewed)}  # fmt: skip
    assert sum(load > 0 for load in loads[few]) == 16
    assert loads[skewed][-1] > 2 * loads[even][-1]
