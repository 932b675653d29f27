"""Named GPUs and what is achievable on them."""

from __future__ import annotations

import pytest

from engine.core.dtypes import UnknownDtypeError
from engine.core.hardware_spec import (
    UnknownGpuError,
    UnsupportedGpuDtypeError,
    gpu_names,
    load_hardware_spec,
)


def test_the_named_gpus():
    """The six GPUs load by name in any case and carry it."""
    assert gpu_names() == ("a100", "h100", "h200", "b200", "l4", "rtx4090")
    assert [load_hardware_spec(name.upper()).name for name in gpu_names()] == list(gpu_names())


def test_an_unknown_gpu_is_an_error_with_a_hint():
    """A miss says what is close and what there is."""
    with pytest.raises(UnknownGpuError, match=r"'h20'; did you mean 'h200'\?; known: a100, h100"):
        load_hardware_spec("h20")


@pytest.mark.parametrize("name", gpu_names())
def test_nothing_exceeds_the_data_sheet(name):
    """Every achievable figure is a positive fraction of a promised one."""
    gpu = load_hardware_spec(name)
    fractions = [
        gpu.achievable.copy,
        gpu.achievable.weight_stream,
        gpu.achievable.attention,
        gpu.achievable.link,
        *gpu.achievable.gemm.values(),
    ]
    assert all(0 < fraction <= 1 for fraction in fractions)
    assert set(gpu.peak_flops) <= set(gpu.achievable.gemm)


def test_the_measured_ceilings_of_an_h200():
    """The fractions give back the figures they were derived from."""
    gpu = load_hardware_spec("h200")
    assert gpu.copy_bandwidth == pytest.approx(4.25e12)
    assert gpu.weight_bandwidth == pytest.approx(3.80e12, rel=1e-3)
    assert gpu.gemm_flops("bf16") == pytest.approx(700e12)
    assert gpu.gemm_flops("fp8") == pytest.approx(1204e12)
    assert gpu.gemm_flops("int8") == pytest.approx(923e12)
    assert gpu.attention_flops == pytest.approx(545e12)
    assert gpu.all_reduce_bandwidth == pytest.approx(357e9)


def test_only_what_was_measured_says_so():
    """Every GPU but the measured one carries the assumption by name."""
    assert [name for name in gpu_names() if load_hardware_spec(name).achievable.measured] == [
        "h200"
    ]
    others = [load_hardware_spec(name) for name in gpu_names() if name != "h200"]
    assert all(gpu.achievable.source.startswith("assumed") for gpu in others)


def test_a_dtype_that_a_gpu_lacks_is_an_error():
    """An A100 has no fp8 units, and int3 exists nowhere."""
    with pytest.raises(UnsupportedGpuDtypeError, match="does not compute in fp8; it does in bf16"):
        load_hardware_spec("a100").gemm_flops("fp8")
    with pytest.raises(UnknownDtypeError, match="unknown dtype 'int3'; allowed: bf16"):
        load_hardware_spec("h200").gemm_flops("int3")
