"""What rows of a decode graph without a request take off is found; noise is not taken for it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from measured_steps import GPU_ENGINE, decode, host_samples, samples_of

from simulator.fitting.base import Steps
from simulator.fitting.decode import knots_by_graph
from simulator.fitting.profile_fit import fit_profile

HOST = host_samples()


@pytest.mark.parametrize("each_ns", [0, 40_000])
def test_what_idle_rows_take_off_is_found(each_ns):
    """Graphs that are full and that are not, in turn, as a calibration measures them."""
    requests = (16, 12, 16, 9, 12, 16, 12, 16)
    contexts = (500, 1500, 4000, 4500, 6000, 16_000, 24_000, 600_000)
    shapes = [
        decode(16, 1, 16)._replace(
            decode_requests=count, decode_tokens=count, decode_context=context,
            decode_max_context=context // count,
        )
        for count, context in zip(requests, contexts, strict=True)
    ]  # fmt: skip
    noise = np.random.default_rng(5).normal(1, 0.003, len(shapes))
    ns = [
        round((9e6 + 24 * context - each_ns * max(0, 15 - count)) * off)
        for count, context, off in zip(requests, contexts, noise, strict=True)
    ]
    samples = msgspec.structs.replace(samples_of(shapes), gpu_ns=tuple(ns))
    (table,) = fit_profile(samples, HOST, GPU_ENGINE).decode
    assert abs(table.idle_row_ns - each_ns) < 6000
    assert table.idle_row_ns >= 0
    assert np.allclose(table.ns, 9e6 + 24 * np.array(table.context), rtol=0.01)


def half_full(graph_batch, fill=0.8):
    """Steps of a graph that is full and that is not, in turn, at eight contexts."""
    counts = [graph_batch if at % 2 else round(fill * graph_batch) for at in range(8)]
    contexts = [graph_batch * each for each in (32, 128, 256, 512, 1024, 2048, 4096, 8192)]
    return [
        decode(count, 1, graph_batch)._replace(
            decode_context=context, decode_max_context=-(-context // count)
        )
        for count, context in zip(counts, contexts, strict=True)
    ]


def test_noise_of_a_dense_model_is_no_idle_rows():
    """Its graphs take what they take, whoever is in them; now and then chance looks otherwise."""
    shapes = [shape for batch in (16, 24, 32, 64, 128, 256) for shape in half_full(batch)]
    found = [
        table.idle_row_ns > 0
        for seed in range(20)
        for table in fit_profile(samples_of(shapes, seed=seed), HOST, GPU_ENGINE).decode
    ]
    assert len(found) == 120
    assert sum(found) < 18


def test_a_row_takes_off_no_more_than_its_share_of_the_graph():
    """One row that is idle tells little of 255: such a table could not be written."""
    shapes = half_full(256, fill=254 / 256)
    ns = [10_000_000 - 400_000 * (shape.decode_requests < 256) for shape in shapes]
    samples = msgspec.structs.replace(samples_of(shapes), gpu_ns=tuple(ns))
    (table,) = fit_profile(samples, HOST, GPU_ENGINE).decode
    assert 0 < table.idle_row_ns * 256 <= table.ns[0]


def test_a_residual_knows_nothing_of_the_step_that_it_is_of():
    """Not even by what idle rows take off."""
    samples = samples_of(half_full(16), noise=0.02)
    for left_out in range(1, 7):
        found = []
        for times in (1.0, 1.3):
            ns = np.array(samples.gpu_ns, np.float64)
            ns[left_out] *= times
            (knots,) = knots_by_graph(Steps(samples.features(), ns, np.ones(8, np.int64)))
            found.append(knots.without(knots.context[left_out])[0])
        assert found[0].idle_row_ns == found[1].idle_row_ns
        assert found[0].ns.tolist() == found[1].ns.tolist()
