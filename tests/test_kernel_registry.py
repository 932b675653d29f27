"""Which implementations run: by device, by name, and never another one in silence."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from engine.kernels.pdl import launch_options
from engine.kernels.registry import IMPLEMENTATIONS, KernelSet, select_kernels

CPU = torch.device("cpu")


def test_devices_have_their_own() -> None:
    """Torch's on a CPU, Triton's on a GPU, of every op; what was chosen is told."""
    for device, name in ((CPU, "torch"), (torch.device("cuda", 0), "triton")):
        kernels = select_kernels(device)
        assert set(kernels.chosen) == {field.name for field in fields(KernelSet)} - {"chosen"}
        assert set(kernels.chosen.values()) == {name}
        for op, found in IMPLEMENTATIONS.items():
            assert getattr(kernels, op) is found[name]


def test_one_op_may_differ() -> None:
    """What is wanted by name goes before what is wanted of all."""
    kernels = select_kernels(CPU, {"*": "triton", "linear": "torch"})
    assert kernels.chosen["linear"] == "torch"
    assert {name for op, name in kernels.chosen.items() if op != "linear"} == {"triton"}
    assert kernels.linear is IMPLEMENTATIONS["linear"]["torch"]


def test_what_only_some_ops_have() -> None:
    """An implementation wanted of all ops is taken by those that have it."""
    rare = {n for found in IMPLEMENTATIONS.values() for n in found} - {"torch", "triton"}
    for name in rare:
        kernels = select_kernels(CPU, {"*": name})
        for op, found in IMPLEMENTATIONS.items():
            assert kernels.chosen[op] == (name if name in found else "torch")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"attention": "torch"}, "no op 'attention'; ops: embed_tokens, "),
        ({"linear": "cutlass"}, "linear has no implementation 'cutlass'; it has torch, triton"),
        ({"*": "tritn"}, "no op has 'tritn'; implementations: .*torch, triton"),
    ],
)
def test_what_does_not_exist_is_an_error(wanted: dict[str, str], message: str) -> None:
    """A name that nothing has is told with those that exist."""
    with pytest.raises(ValueError, match=message):
        select_kernels(CPU, wanted)


def test_no_dependent_launch_on_a_cpu() -> None:
    """The interpreter knows nothing of programmatic dependent launch."""
    assert launch_options(CPU) == {"PDL": False}
