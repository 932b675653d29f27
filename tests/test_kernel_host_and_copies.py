"""The host's work and copies of KV pages: measured, and read off by what is composed."""

from __future__ import annotations

from statistics import median

import msgspec
import numpy as np
import pytest
from made_kernels import H200, kernel_ns, made_kernels
from measured_steps import decode

from engine.core.model_spec import load_model_spec
from engine.profiling.kernel_cases import COPIES, HOST_WORK, KernelCase
from simulator.composition.composed import ComposedCostModel
from simulator.composition.kernel_tables import KernelTables
from simulator.roofline import HostCosts

TABLES = made_kernels(("Llama-3.1-8B",))


def test_a_larger_batch_is_more_work_for_the_host():
    """Every part of the host's work is timed in each step, and texts and commits grow."""
    work = pytest.importorskip("engine.profiling.host_work").HostWork()
    for op in HOST_WORK:
        few, many = work.times(op, 1), work.times(op, 256)
        assert len(few) == len(many) == 40
        assert min(few + many) > 0
        if op in ("commit", "detokenize"):
            assert median(many) > 2 * median(few)


def test_the_hosts_parts_are_summed_up():
    """A step's constant and its requests' share are those of the parts together, texts aside."""
    assert KernelTables(TABLES).host_work == pytest.approx((15_000.0, 300.0), rel=1e-3)
    less = tuple(each for each in TABLES.series if each.op != "commit")
    assert KernelTables(msgspec.structs.replace(TABLES, series=less)).host_work is None


def test_without_lenders_the_host_is_its_parts_and_launching():
    """Launching is the analytic model's; where parts were not measured, requests are, too."""
    spec, usual = load_model_spec("Llama-3.1-8B"), HostCosts()
    host_ns = ComposedCostModel(TABLES, spec, H200).step_cost(decode(64, 500, 64))[1]
    assert host_ns == pytest.approx(usual.step_ns + 15_000 + 64 * 300, rel=1e-3)
    bare = msgspec.structs.replace(
        TABLES, series=tuple(each for each in TABLES.series if each.op not in HOST_WORK)
    )
    host_ns = ComposedCostModel(bare, spec, H200).step_cost(decode(64, 500, 64))[1]
    assert host_ns == usual.step_ns + 64 * usual.request_ns


@pytest.mark.parametrize("op", COPIES)
def test_copies_are_read_off(op: str):
    """Between numbers of pages, and for pages of sizes that were not measured."""
    curves = KernelTables(TABLES).rows(op)
    pages = np.array([1.0, 100.0, 1024.0])
    for page_bytes, most in ((32768, 0.01), (24576, 0.25)):
        true = [kernel_ns(KernelCase(op, (page_bytes,), (int(count),))) for count in pages]
        assert curves.ns((page_bytes,), pages) == pytest.approx(true, rel=most)
