"""A made-up engine whose steps have known costs, measured with noise: what fits are tested on."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import msgspec
import numpy as np

from simulator.cost_model import StepFeatures, StepShape
from simulator.fitting.profile_fit import fit_profile
from simulator.mixed_costs import launch_kinds, padded_tokens
from simulator.profile import SCHEMA, EngineFacts, Identity, LaunchFit, Profile
from simulator.samples import HostSamples, Samples

GRAPH_BATCHES = (1, 2, 4, 8, 16, 24, 32, 64, 128, 256)
GPU_ENGINE = EngineFacts(
    num_pages=20_000,
    max_num_batched_tokens=8192,
    max_running_requests=512,
    graph_batch_sizes=GRAPH_BATCHES,
    graph_tokens=(16, 32, *range(64, 1025, 64)),
)
CPU_ENGINE = EngineFacts(num_pages=500, max_num_batched_tokens=512, max_running_requests=64)


@dataclass(frozen=True)
class Truth:
    """What steps cost in truth, in ns; the fits do not know its form.

    Tokens are bound by weights, then by arithmetic, with a bend between; a decode graph reads its
    context at a rate that bends as well. A long prompt of few new tokens is slower than its work,
    and steps of little work wait for their launches. A shared token costs `shared_share`.
    """

    weights_ns: float = 4e6
    token_ns: float = 17_000.0
    pair_ns: float = 0.9
    context_ns: float = 30.0
    max_context_ns: float = 300.0
    decode_context_ns: float = 28.0
    prefill_request_ns: float = 9_000
    decode_request_ns: float = 600
    logits_ns: float = 250_000
    logit_row_ns: float = 900
    shared_share: float = 0.6
    launches: LaunchFit = field(
        default_factory=lambda: LaunchFit(graph_mixed_ns=7e6, eager_decode_ns=14e6)
    )

    def table(self, tokens):
        """Cost of tokens: smooth, flat first and a line in the end."""
        return (self.weights_ns**4 + (self.token_ns * tokens) ** 4) ** 0.25

    def graph_ns(self, graph_batch, context):
        """A pure decode graph."""
        per_row = context / graph_batch
        saved = 0.2 * np.minimum(per_row, 1500) * graph_batch  # short contexts share loads
        return self.table(graph_batch) + self.decode_context_ns * (context - saved)

    def ns(self, f: StepFeatures, engine: EngineFacts):
        """float64[n] of any steps."""
        graphed = (f.prefill_tokens == 0) & (f.graph_batch > 0)
        context = f.decode_context - (1 - self.shared_share) * f.shared_context
        other = (
            self.table(padded_tokens(f, engine.graph_tokens))
            + np.maximum(
                self.pair_ns * f.prefill_pairs + self.context_ns * f.prefill_context,
                self.max_context_ns * f.prefill_max_context,
            )
            + self.decode_context_ns * context
            + self.prefill_request_ns * f.prefill_requests
            + self.decode_request_ns * f.decode_requests
            + np.where(f.sampled_tokens > 0, self.logits_ns, 0)
            + self.logit_row_ns * f.sampled_tokens
        )
        launches = np.array(msgspec.structs.astuple(self.launches))
        other = np.maximum(other, launches[launch_kinds(f, engine.graph_tokens)])
        return np.where(graphed, self.graph_ns(np.maximum(f.graph_batch, 1), context), other)


def decode(requests: int, context: int, graph_batch: int = 0, *, shared: int = 0) -> StepShape:
    """A decode step of requests of `context` tokens each, the first `shared` of them in common."""
    return StepShape(
        decode_requests=requests,
        decode_tokens=requests,
        decode_context=requests * context,
        decode_max_context=context,
        shared_context=(requests - 1) * shared,
        sampled_tokens=requests,
        graph_batch=graph_batch,
    )


def prefill(tokens: int, *, requests: int = 1, context: int = 0, sampled: int = 1) -> StepShape:
    """Chunks of equal length after prefixes of equal length, `tokens` and `context` in total."""
    each, before = tokens // requests, context // requests
    return StepShape(
        prefill_tokens=tokens,
        prefill_requests=requests,
        prefill_context=context,
        prefill_pairs=requests * (each * before + each * (each + 1) // 2),
        prefill_max_context=each + before,
        sampled_tokens=sampled,
    )


def mixed(chunk: StepShape, decoding: StepShape) -> StepShape:
    """A step that does both; it runs as no decode graph."""
    sums = [one + other for one, other in zip(chunk, decoding, strict=True)]
    return StepShape(*sums)._replace(
        graph_batch=0, active_experts=-1, decode_max_context=decoding.decode_max_context
    )


def gpu_shapes() -> list[StepShape]:
    """What a calibration of a GPU measures, in small."""
    shapes = [
        decode(batch, context, batch)
        for batch in GRAPH_BATCHES
        for context in (32, 512, 1500, 2048, 8192, 16_384)
    ]
    sizes = [16, 32, *range(64, 2049, 64), *range(2176, 8193, 256)]
    shapes += [prefill(size, sampled=index % 2) for index, size in enumerate(sizes)]
    shapes += [prefill(size, requests=4, sampled=4) for size in range(128, 8193, 704)]
    shapes += [
        prefill(size, context=before)
        for size in (64, 256, 512, 2048, 8192)
        for before in (1024, 4096, 16_384, 65_536)
    ]
    shapes += [
        mixed(prefill(size), decode(batch, context))
        for size in (48, 240, 480, 1900, 7900)
        for batch in (1, 16, 128, 200)
        for context in (256, 2048, 8192)
    ]
    shapes += [
        decode(batch, context)
        for batch in (288, 320, 384, 448, 512)
        for context in (64, 128, 1024, 4096)
    ]
    for shared in (512, 2048):
        shapes += [
            decode(batch, shared + own, batch, shared=shared)
            for batch in (8, 32, 128)
            for own in (100, 900)
        ]
        shapes.append(mixed(prefill(240), decode(32, shared + 300, shared=shared)))
    return shapes


def cpu_shapes() -> list[StepShape]:
    """What a calibration of a CPU measures: no graphs."""
    shapes = [decode(batch, context) for batch in (1, 2, 4, 8, 32, 64) for context in (8, 64, 400)]
    shapes += [prefill(size, context=before) for size in range(16, 513, 32) for before in (0, 300)]
    shapes += [mixed(prefill(size), decode(8, 100)) for size in (24, 100, 400)]
    return shapes


def samples_of(
    shapes: list[StepShape],
    engine: EngineFacts = GPU_ENGINE,
    truth: Truth | None = None,
    noise: float = 0.005,
    seed: int = 0,
) -> Samples:
    """Steps measured with relative noise."""
    ns = (truth or Truth()).ns(StepFeatures.from_shapes(shapes), engine)
    ns *= 1 + noise * np.random.default_rng(seed).standard_normal(len(ns))
    return Samples(
        shapes=tuple(tuple(shape) for shape in shapes),
        gpu_ns=tuple(ns.round().astype(int).tolist()),
        spread_ns=tuple((noise * ns).astype(int).tolist()),
        repeats=(7,) * len(ns),
    )


def host_samples(outliers: float = 0.0, seed: int = 0) -> HostSamples:
    """Steps of 120 us, 4 us a request, 50 us a prompt and 20 ns a token; some are 20 times as long.

    Args:
        outliers: share of those.
        seed: of chance.
    """
    random = np.random.default_rng(seed)
    requests = random.integers(1, 257, 2000)
    prompts = np.where(random.random(2000) < 0.3, np.minimum(requests, 8), 0)
    tokens = prompts * random.integers(1, 2048, 2000)
    ns = 120_000 + 4_000 * requests + 50_000 * prompts + 20 * tokens
    ns = ns * random.normal(1, 0.02, 2000)
    ns[random.random(2000) < outliers] *= 20
    return HostSamples(
        requests=tuple(requests.tolist()),
        prefill_requests=tuple(prompts.tolist()),
        prefill_tokens=tuple(tokens.tolist()),
        host_ns=tuple(ns.astype(int).tolist()),
    )


def profile_of(samples: Samples, engine: EngineFacts = GPU_ENGINE) -> Profile:
    """A profile with the fit of samples."""
    host = host_samples()
    return Profile(
        schema=SCHEMA,
        name="h200-tiny-test",
        identity=Identity(
            gpu="NVIDIA H200",
            model="tiny",
            model_digest="0123",
            dtype="bfloat16",
            kv_dtype="bfloat16",
            page_size=16,
            engine_version="not installed",
        ),
        engine=engine,
        samples=samples,
        host_samples=host,
        fit=fit_profile(samples, host, engine),
    )


def columns_of(*shapes: StepShape) -> StepFeatures:
    """Shapes as feature columns."""
    return StepFeatures.from_shapes(shapes)


def random_features(count: int, seed: int = 0) -> StepFeatures:
    """Steps of all kinds, most of which no engine would run: int64[count] each."""
    random = np.random.default_rng(seed)
    kind = random.integers(0, 4, count)  # decode graph, prefill, both, eager decode
    prefills, decodes = (kind == 1) | (kind == 2), kind != 1
    upto = {
        "prefill_tokens": (9000, prefills),
        "prefill_requests": (30, prefills),
        "prefill_context": (100_000, prefills),
        "prefill_pairs": (90_000_000, prefills),
        "prefill_max_context": (70_000, prefills),
        "decode_requests": (600, decodes),
        "decode_tokens": (600, decodes),
        "decode_context": (5_000_000, decodes),
        "decode_max_context": (20_000, decodes),
        "shared_context": (5_000_000, decodes & (random.random(count) < 0.5)),
        "sampled_tokens": (600, random.random(count) < 0.8),
        "graph_batch": (300, kind == 0),
        "active_experts": (100, random.random(count) < 0.1),
    }
    columns = {
        name: np.where(chosen, 1 + (random.random(count) ** 3 * most).astype(np.int64), 0)
        for name, (most, chosen) in upto.items()
    }
    assert set(columns) == {each.name for each in fields(StepFeatures)}
    return StepFeatures(**columns)
