"""Calibrated cost models for tests: of made-up measurements, and by hand."""

from __future__ import annotations

import msgspec
from hypothesis import strategies as st
from measured_steps import (
    CPU_ENGINE,
    GPU_ENGINE,
    cpu_shapes,
    gpu_shapes,
    profile_of,
    random_features,
    samples_of,
)

from simulator.calibrated import CalibratedCostModel
from simulator.cost_model import CostModel, StepFeatures, StepShape
from simulator.profile import DecodeTable, Fit, HostFit, LaunchFit, MixedFit, SharedFit

GPU = profile_of(samples_of(gpu_shapes()))
MODELS: dict[str, CostModel] = {
    "gpu": CalibratedCostModel(GPU),
    "cpu": CalibratedCostModel(profile_of(samples_of(cpu_shapes(), CPU_ENGINE), CPU_ENGINE)),
}
models = st.sampled_from(sorted(MODELS)).map(MODELS.__getitem__)

MIXED = MixedFit(
    tokens=(64, 128, 1024),
    ns=(1000.0, 1640.0, 10_600.0),
    pair_ns=0.25,
    context_ns=0.5,
    max_context_ns=3.0,
    decode_context=(0, 4000, 90_000),
    decode_context_ns=(0.0, 8000.0, 94_000.0),
    prefill_request_ns=30.0,
    decode_request_ns=7.0,
    logits_ns=500.0,
    logit_row_ns=11.0,
    launches=LaunchFit(
        graph_prefill_ns=1500.4, graph_mixed_ns=2000.0, eager_mixed_ns=1900.0,
        eager_decode_ns=1700.0,
    ),
)  # fmt: skip
TABLES = (
    DecodeTable(graph_batch=4, context=(100, 400, 1000), ns=(5000.0, 5300.0, 7100.0)),
    DecodeTable(graph_batch=8, context=(200, 800, 2000), ns=(6000.0, 6600.0, 10_200.0)),
)
NOTHING_SHARED = SharedFit()
LIMITS = {"prefill_tokens": 1024, "decode_context": 2000, "decode_max_context": 500}


def model_of(
    decode: tuple[DecodeTable, ...] = TABLES,
    mixed: MixedFit | None = MIXED,
    graph_tokens: tuple[int, ...] = (),
    shared: SharedFit = NOTHING_SHARED,
) -> CalibratedCostModel:
    """A model with costs that a person can add up."""
    fit = Fit(
        decode=decode,
        mixed=mixed,
        host=HostFit(
            step_ns=1000.4, request_ns=10.0, prefill_request_ns=100.0, prefill_token_ns=0.5
        ),
        limits=LIMITS,
        residuals=(),
        shared=shared,
    )
    engine = msgspec.structs.replace(GPU_ENGINE, graph_tokens=graph_tokens)
    return CalibratedCostModel(msgspec.structs.replace(GPU, name="by hand", fit=fit, engine=engine))


def gpu_ns(model: CostModel, shape: StepShape) -> int:
    """GPU time of one step."""
    return model.step_cost(shape)[0]


def shapes_of(features: StepFeatures) -> list[StepShape]:
    """Columns as shapes of Python ints."""
    columns = [getattr(features, name).tolist() for name in StepShape._fields]
    return [StepShape(*row) for row in zip(*columns, strict=True)]


@st.composite
def steps(draw) -> StepShape:
    """Steps of all kinds, one of many random ones."""
    return shapes_of(random_features(1, draw(st.integers(0, 1 << 32))))[0]
