"""A made-up GPU: kernels with known times, and models whose steps are sums of them."""

from __future__ import annotations

import numpy as np
from measured_steps import GPU_ENGINE, gpu_shapes, host_samples

from engine.core.graph_sizes import default_graph_tokens
from engine.core.hardware_spec import load_hardware_spec
from engine.core.model_spec import ModelSpec, load_model_spec
from engine.profiling.kernel_cases import KernelCase, KernelLimits, design_kernels
from engine.profiling.kernel_tables import KernelTimes
from simulator.composition.composed import ComposedCostModel
from simulator.composition.kernel_file import (
    SCHEMA,
    Composition,
    Correction,
    KernelFile,
    KernelIdentity,
)
from simulator.cost_model import StepFeatures, StepShape
from simulator.fitting.composition import Measured, fit_composition
from simulator.fitting.profile_fit import fit_profile
from simulator.profile import SCHEMA as PROFILE_SCHEMA
from simulator.profile import Identity, Profile
from simulator.samples import Samples
from workbench.calibration.kernel_measurements import series_of
from workbench.running.profile_match import model_digest

H200 = load_hardware_spec("h200")
CARDS = ("Llama-3.1-8B", "Qwen3-0.6B", "Qwen3-30B-A3B")
LIMITS = KernelLimits(weight_bytes=4 << 30, kv_bytes=4 << 30, tokens=8192)
START_NS, BYTES_PER_NS, FLOPS_PER_NS = 1800.0, 3900.0, 650_000.0
TRUE = Correction(
    decode_products=1.02, decode_attention=0.98, decode_layer_ns=900.0, products=1.02,
    attention=1.03, layer_ns=2000.0, step_ns=30_000.0, chunk_ns=4000.0,
)  # fmt: skip


def kernel_ns(case: KernelCase) -> float:
    """What an op of the made-up GPU takes: that of its kernels."""
    return sum(_kernel_ns(KernelCase(*part)) for part in _parts(case))


def _parts(case: KernelCase):
    """(op, sizes, point) of each kernel."""
    match case.op, case.sizes:
        case "projections", (heads, kv_heads, dim, normed, hidden):
            return [
                ("norm_linear", ((heads + 2 * kv_heads) * dim, hidden), case.point),
                ("rotary_kv_write", (heads, kv_heads, dim, normed), case.point),
                ("residual_linear", (hidden, heads * dim), case.point),
            ]
        case "mlp", (hidden, width):
            return [
                ("norm_gated_linear", (2 * width, hidden), case.point),
                ("residual_linear", (hidden, width), case.point),
            ]
        case "moe_layer", (experts, top_k, hidden, _):
            tokens = case.point[:1]
            return [
                ("norm", (hidden,), tokens),
                ("linear", (experts, hidden), tokens),
                ("route", (experts, top_k), tokens),
                ("moe_mlp", case.sizes, case.point),
            ]
    return [case[:3]]


def _kernel_ns(case: KernelCase) -> float:
    """What a kernel takes: to start, and for its bytes or its operations."""
    read, flops = 0.0, 0.0
    match case.op, case.sizes, case.point:
        case "decode_attention", (heads, kv_heads, dim), (_, context):
            read, flops = 4.0 * context * kv_heads * dim, 4.0 * context * heads * dim
        case "prefill_attention", (heads, kv_heads, dim), (chunks, tokens, prefix):
            read = 4.0 * chunks * (tokens + prefix) * kv_heads * dim
            pairs = chunks * (tokens * prefix + tokens * tokens / 2)
            flops = 6.0 * pairs * heads * dim  # softmax keeps the matrix units waiting
        case "moe_mlp", (_, top_k, hidden, width), (tokens, active, largest):
            read, flops = 6.0 * active * hidden * width, 6.0 * tokens * top_k * hidden * width
            flops += 60.0 * largest * hidden * width / max(1, active)
        case (("norm" | "embed_tokens" | "sample" | "route"), (size, *_), (tokens,)):
            read = 6.0 * size * tokens
        case (("plan" | "prepare" | "commit" | "detokenize"), (), (requests,)):
            return 5000.0 + 100.0 * requests
        case "kv_copy", (page_bytes,), (pages,):
            read = 4.0 * page_bytes * pages
        case (("kv_to_host" | "kv_from_host"), (page_bytes,), (pages,)):
            return 8000.0 + page_bytes * pages / 50
        case "rotary_kv_write", (heads, kv_heads, dim, _), (tokens,):
            read = 4.0 * (heads + 2 * kv_heads) * dim * tokens
        case _, (out_features, inner), (tokens,):
            read = 2.0 * (out_features * inner + tokens * (out_features + inner))
            flops = 2.0 * tokens * out_features * inner
    return START_NS + max(read / BYTES_PER_NS, flops / FLOPS_PER_NS)


def made_kernels(cards=CARDS, gpu: str = "NVIDIA H200", noise: float = 0.0) -> KernelFile:
    """Tables of the kernels of some models, on one GPU; nothing is known of whole steps."""
    random, done = np.random.default_rng(0), KernelTimes()
    for case in design_kernels([load_model_spec(card) for card in cards], LIMITS, (1, 2)):
        ns = kernel_ns(case) * (1 + noise * random.standard_normal(3))
        done.add(case, ns.tolist())
    bare = KernelFile(
        schema=SCHEMA,
        name="kernels-made",
        identity=KernelIdentity(
            gpu=gpu, dtype="bf16", page_size=16, engine_version="not installed"
        ),
        series=series_of(done),
        composition=Composition(attention=()),
    )
    return fit_composition(bare, [], H200)


def measured_whole(
    kernels: KernelFile, card: str, noise: float = 0.002, rows_taken: float = 1.0
) -> Measured:
    """A model whose steps are the sum of its kernels, but for `TRUE`.

    Args:
        kernels: of the GPU.
        card: of the model.
        noise: of steps, as a share.
        rows_taken: share of decode graphs' rows that have a request, about.
    """
    spec = load_model_spec(card)
    corrected = with_correction(kernels, TRUE, skew=0.0)  # random weights choose evenly
    engine = GPU_ENGINE.__class__(
        num_pages=20_000, max_num_batched_tokens=8192, max_running_requests=512,
        graph_batch_sizes=GPU_ENGINE.graph_batch_sizes, graph_tokens=default_graph_tokens(spec),
    )  # fmt: skip
    shapes = [
        _fuller(shape, rows_taken)
        for shape in gpu_shapes()
        if shape.graph_batch or shape.prefill_tokens
    ]
    costs = ComposedCostModel(corrected, spec, H200).step_costs(StepFeatures.from_shapes(shapes))
    ns = costs.gpu_ns * (1 + noise * np.random.default_rng(1).standard_normal(len(shapes)))
    samples = Samples(
        shapes=tuple(map(tuple, shapes)),
        gpu_ns=tuple(ns.round().astype(int).tolist()),
        spread_ns=(0,) * len(ns),
        repeats=(7,) * len(ns),
    )
    host = host_samples()
    return Measured(
        Profile(
            schema=PROFILE_SCHEMA,
            name=f"nvidia-h200-{card.lower()}-bf16-tp1",
            identity=identity_of(spec, kernels.identity.gpu),
            engine=engine,
            samples=samples,
            host_samples=host,
            fit=fit_profile(samples, host, engine),
        ),
        spec,
    )


def _fuller(shape: StepShape, rows_taken: float) -> StepShape:
    """A step whose decode graph has a request in so many of its rows."""
    requests = max(1, round(rows_taken * shape.graph_batch))
    if not shape.graph_batch or requests == shape.decode_requests:
        return shape
    return shape._replace(
        decode_requests=requests,
        decode_tokens=requests,
        decode_max_context=-(-shape.decode_context // requests),
    )


def with_correction(
    kernels: KernelFile, correction: Correction, skew: float | None = None
) -> KernelFile:
    """The same tables, with other corrections, and maybe another choice of experts."""
    attention = kernels.composition.attention
    lenders = kernels.composition.lenders
    skew = kernels.composition.expert_skew if skew is None else skew
    composition = Composition(
        attention=attention, correction=correction, lenders=lenders, expert_skew=skew
    )
    return KernelFile(
        schema=kernels.schema, name=kernels.name, identity=kernels.identity,
        series=kernels.series, composition=composition,
    )  # fmt: skip


def identity_of(spec: ModelSpec, gpu: str) -> Identity:
    """Of the engine that ran a model whole."""
    return Identity(
        gpu=gpu, model=spec.name, model_digest=model_digest(spec), dtype="bf16", kv_dtype="bf16",
        page_size=16, engine_version="not installed",
    )  # fmt: skip
