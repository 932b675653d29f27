"""Fits recover what a made-up engine costs, from noisy samples, and say when they cannot."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_steps import (
    CPU_ENGINE,
    GPU_ENGINE,
    GRAPH_BATCHES,
    Truth,
    columns_of,
    cpu_shapes,
    decode,
    gpu_shapes,
    host_samples,
    mixed,
    prefill,
    profile_of,
    samples_of,
)

from simulator.calibrated import CalibratedCostModel
from simulator.cost_model import StepShape, sum_of_terms
from simulator.curves import SharedContext
from simulator.fitting import profile_fit as fitting
from simulator.fitting.base import Steps, nonnegative_costs
from simulator.fitting.decode import ascending
from simulator.fitting.mixed import fit_mixed
from simulator.fitting.profile_fit import fit_profile
from simulator.mixed_costs import MixedCosts, counted_tokens
from simulator.profile import LaunchFit, ProfileError, SharedFit
from simulator.profile_file import encode_profile
from simulator.samples import HostSamples, Samples

SAMPLES = samples_of(gpu_shapes())
PROFILE = profile_of(SAMPLES)
HOST = host_samples()


def unseen_shapes(count: int = 600) -> list[StepShape]:
    """Steps of all kinds inside the range of `gpu_shapes`, hardly any of them measured."""
    random = np.random.default_rng(7)

    def upto(most: int, least: int = 1) -> int:
        return int(random.integers(least, most + 1))

    shapes: list[StepShape] = []
    for index in range(count):
        batch, tokens = GRAPH_BATCHES[upto(9, 0)], upto(8192 if index % 2 else 1024, 16)
        requests = upto(4)
        each = max(16, tokens // requests)
        shapes += [
            decode(batch, upto(16_000, 32), batch),
            prefill(tokens, sampled=upto(1, 0)),
            prefill(tokens, context=upto(65_536)),
            prefill(each * requests, requests=requests, sampled=requests),
            mixed(prefill(min(tokens, 7900)), decode(upto(200), upto(8192, 32))),
        ]
    return shapes


def percent_off(shapes: list[StepShape], truth: Truth, samples: Samples) -> np.ndarray:
    """Signed errors of a fit against the truth, in percent: float64[n]."""
    features = columns_of(*shapes)
    predicted = CalibratedCostModel(profile_of(samples)).step_costs(features).gpu_ns
    return 100 * (predicted / truth.ns(features, GPU_ENGINE) - 1)


def without_residuals(fit):
    return msgspec.structs.replace(fit, residuals=())


# What is fitted is what is true.


@pytest.mark.parametrize("seed", range(3))
def test_the_truth_is_recovered(seed):
    """With 0.5 % noise, unseen steps are predicted within 1 % in the median and 3 % in the tail."""
    samples = samples_of(gpu_shapes(), seed=seed)
    errors = percent_off(unseen_shapes(), Truth(), samples)
    assert np.percentile(np.abs(errors), 50) < 1
    assert np.percentile(np.abs(errors), 99) < 3
    assert abs(np.median(errors)) < 0.3


def test_without_noise_the_slopes_are_exact():
    """Costs that are linear in truth come out as they are, up to rounding to whole ns."""
    mixed_fit = profile_of(samples_of(gpu_shapes(), noise=0)).fit.mixed
    truth = Truth()
    assert mixed_fit.pair_ns == pytest.approx(truth.pair_ns, rel=0.01)
    assert mixed_fit.context_ns == pytest.approx(truth.context_ns, rel=0.02)
    slopes = np.diff(mixed_fit.decode_context_ns) / np.diff(mixed_fit.decode_context)
    assert slopes == pytest.approx(truth.decode_context_ns, rel=0.001)
    assert mixed_fit.logits_ns == pytest.approx(truth.logits_ns, rel=0.1)
    assert mixed_fit.max_context_ns == pytest.approx(truth.max_context_ns, rel=0.02)
    assert mixed_fit.launches.graph_mixed_ns == pytest.approx(7e6, rel=0.001)
    assert mixed_fit.launches.eager_decode_ns == pytest.approx(14e6, rel=0.001)


def test_decode_without_graphs_does_not_make_prefill_dear():
    """It waits for launches, as prefill of as many tokens does not: one table cannot hold both."""
    for eager_ns in (0, 20e6):
        truth = Truth(launches=LaunchFit(eager_decode_ns=eager_ns))
        samples = samples_of(gpu_shapes(), truth=truth)
        shapes = [prefill(size) for size in range(200, 700, 9)]
        assert np.max(np.abs(percent_off(shapes, truth, samples))) < 2
        shapes = [decode(batch, context) for batch in (300, 450) for context in (200, 3000)]
        assert np.max(np.abs(percent_off(shapes, truth, samples))) < 2


def test_decode_tables_hold_the_medians_at_the_measured_contexts():
    """Three samples at one context are one knot, at their median."""
    shape = decode(8, 512, 8)
    samples = samples_of([decode(8, 32, 8), shape, shape, shape, decode(8, 4096, 8)], noise=0)
    samples = msgspec.structs.replace(samples, gpu_ns=(100, 300, 120, 110, 900))
    (table,) = fit_profile(samples, HOST, GPU_ENGINE).decode
    assert (table.graph_batch, table.context, table.ns) == (
        8,
        (256, 4096, 32_768),
        (100.0, 120.0, 900.0),
    )


def test_the_last_slope_of_a_decode_table_is_not_noise():
    """Contexts that are all but the last one are no knots; elsewhere neighbours are."""
    shapes = [decode(1, context, 1) for context in (1000, 1004, 8999, 9000)]
    samples = msgspec.structs.replace(samples_of(shapes), gpu_ns=(1000, 1030, 1900, 2000))
    (table,) = fit_profile(samples, HOST, GPU_ENGINE).decode
    assert table.context == (1000, 1004, 9000)
    assert table.ns == (1000.0, 1030.0, 2000.0)
    with pytest.raises(ProfileError, match="graph batch 1 was measured at one context.* by 5%"):
        fit_profile(samples_of(shapes[2:]), HOST, GPU_ENGINE)


def test_a_graph_that_was_measured_once_has_no_table():
    """A calibration that was cut short says nothing of it, and all the same of the others."""
    shapes = [decode(4, 100, 4), decode(4, 900, 4), decode(8, 100, 8)]
    tables = fit_profile(samples_of(shapes), HOST, GPU_ENGINE).decode
    assert [table.graph_batch for table in tables] == [4]


def test_noise_at_neighbouring_contexts_is_levelled():
    """Where a longer context took less time, both take the mean, weighted by the repetitions."""
    shapes = [decode(1, context, 1) for context in (10, 100, 200, 4000)]
    samples = msgspec.structs.replace(
        samples_of(shapes), gpu_ns=(1000, 1400, 1200, 2000), repeats=(7, 7, 21, 7)
    )
    (table,) = fit_profile(samples, HOST, GPU_ENGINE).decode
    assert table.ns == (1000.0, 1250.0, 1250.0, 2000.0)


def test_noise_does_not_make_costs_negative():
    """Costs that are zero in truth come out as zero or a little above, with any noise."""
    truth = Truth(
        context_ns=0, max_context_ns=0, prefill_request_ns=0, decode_request_ns=0, logits_ns=0,
        logit_row_ns=0, launches=LaunchFit(),
    )  # fmt: skip
    fits = [
        profile_of(samples_of(gpu_shapes(), truth=truth, noise=0.03, seed=seed)).fit.mixed
        for seed in range(8)
    ]
    for name in ("context_ns", "prefill_request_ns", "decode_request_ns", "logits_ns"):
        costs = [getattr(fit, name) for fit in fits]
        assert min(costs) >= 0
        assert 0.0 in costs, "noise would have made some of these negative"
    for fit in fits:
        assert np.all(np.diff(fit.ns) >= 0)
        assert fit.ns[0] >= 0


def test_the_same_samples_give_the_same_fit():
    """A fit has no chance in it, nor does the order of samples enter into what it predicts."""
    assert fit_profile(SAMPLES, HOST, GPU_ENGINE) == PROFILE.fit
    order = np.random.default_rng(1).permutation(len(SAMPLES)).tolist()
    columns = (SAMPLES.shapes, SAMPLES.gpu_ns, SAMPLES.spread_ns, SAMPLES.repeats)
    names = ("shapes", "gpu_ns", "spread_ns", "repeats")
    shuffled = Samples(
        **{n: tuple(c[i] for i in order) for n, c in zip(names, columns, strict=True)}
    )
    fit = fit_profile(shuffled, HOST, GPU_ENGINE)
    assert fit.decode == PROFILE.fit.decode
    assert fit.mixed.ns == pytest.approx(PROFILE.fit.mixed.ns, rel=1e-9)


def test_what_cannot_be_told_apart_belongs_to_the_table():
    """If every step sampled the rows of three chunks, no cost is ascribed to chunks or rows."""
    shapes = [prefill(size, requests=3, sampled=3) for size in range(66, 4096, 66)]
    fit = fit_profile(samples_of(shapes), HOST, GPU_ENGINE)
    for name in ("prefill_request_ns", "logits_ns", "logit_row_ns"):
        assert getattr(fit.mixed, name) == 0
    assert not any(fit.mixed.decode_context_ns)
    assert fit.decode == ()


def test_the_table_of_tokens_is_thinned():
    """Twice as many sizes as knots: it still spans all that was measured, and predicts well."""
    shapes = [prefill(size, sampled=size % 2) for size in range(1100, 8000, 26)]
    shapes += [prefill(size, context=9000) for size in range(1100, 8000, 700)]
    mixed_fit = profile_of(samples_of(shapes)).fit.mixed
    assert 130 < len(mixed_fit.tokens) <= 150
    assert (mixed_fit.tokens[0], mixed_fit.tokens[-1]) == (1100, max(range(1100, 8000, 26)))
    assert np.median(np.abs(percent_off(shapes, Truth(), samples_of(shapes)))) < 1


def test_thinning_spares_the_sizes_that_steps_are_padded_to():
    """A step of few tokens is read exactly where it was measured."""
    sizes = [*GPU_ENGINE.graph_tokens, *range(1100, 8000, 26)]
    shapes = [prefill(size, sampled=index % 2) for index, size in enumerate(sizes)]
    tokens = profile_of(samples_of(shapes)).fit.mixed.tokens
    assert set(GPU_ENGINE.graph_tokens) < set(tokens)
    assert (len(tokens), tokens[-1]) == (150, sizes[-1])


def test_the_table_is_one_of_padded_tokens():
    """Steps that are padded to one size are one place of the table."""
    shapes = [prefill(size, sampled=size % 2) for size in (*range(900, 961, 3), 2000, 4000)]
    assert profile_of(samples_of(shapes)).fit.mixed.tokens == (960, 2000, 4000)


@pytest.mark.parametrize("by_own", [True, False])
def test_small_steps_are_read_as_they_show_that_they_are(by_own: bool):
    """Rows that only fill a graph take no time where experts are chosen, elsewhere as others."""
    sizes, most = (16, 64, 128, 256), 64 if by_own else 0
    counts = (1, 2, 4, 9, 16, 24, 40, 64, 100, 128, 256, 900)
    shapes = [prefill(count, context=context) for count in counts for context in (0, 512, 4096)]
    f = columns_of(*shapes)
    tokens = counted_tokens(f, sizes, most)
    noise = 1 + np.random.default_rng(0).normal(0, 0.004, len(f))
    ns = (4e6 + 1e6 * np.sqrt(tokens) + 90.0 * f.prefill_context) * noise
    found = fit_mixed(Steps(f, ns, np.full(len(f), 3)), sizes)
    assert found.own_tokens == most
    predicted = sum_of_terms(MixedCosts(found, sizes).terms(f))
    assert np.abs(predicted / ns - 1).max() < 0.03


def test_the_last_slope_is_not_that_of_two_neighbours():
    """Steps beyond what was measured go by a rise over an interval longer than noise."""
    shapes = [
        prefill(size, sampled=size % 2) for size in (*range(2000, 7701, 300), 8000, 8191, 8192)
    ]
    assert profile_of(samples_of(shapes)).fit.mixed.tokens[-2:] == (7700, 8192)


def test_what_shared_context_costs_is_found():
    """Of decode graphs and of steps with prefill, whatever else the steps do."""
    share = 1 - Truth().shared_share
    context = SharedContext(PROFILE.fit.shared)
    for requests in (32, 96, 224):  # of fewer it is not worth much more than noise
        for each in (256, 512, 1024, 2048):
            saved = context.saved(requests * each, requests)
            assert saved == pytest.approx(share * requests * each, abs=0.06 * requests * each)
    of_sharing = next(r for r in PROFILE.fit.residuals if r.region == "shared context")
    assert of_sharing.count == 14
    assert of_sharing.median_percent < 1.5


@pytest.mark.parametrize("seed", range(6))
def test_all_shared_context_may_be_saved(seed):
    """And however sums are rounded, no more than that: or the profile could not be kept."""
    truth = Truth(shared_share=0.0)
    fitted = profile_of(samples_of(gpu_shapes(), truth=truth, seed=seed))
    encode_profile(fitted)  # reads it back
    assert fitted.fit.shared.saved[1] > 400


def test_a_cpu_has_one_fit_for_all():
    """Without graphs decode steps are fitted with the others, just as well."""
    fit = profile_of(samples_of(cpu_shapes(), CPU_ENGINE), CPU_ENGINE).fit
    assert fit.decode == ()
    regions = set(fitting.REGIONS) - {"decode", "shared context", "lower clocks"}
    assert {residual.region for residual in fit.residuals} == regions
    assert fit.shared == SharedFit(), "nobody measured any"
    assert max(residual.p99_percent for residual in fit.residuals) < 3


def test_limits_are_the_largest_that_was_measured():
    """Of every feature that enters a prediction."""
    assert PROFILE.fit.limits == {
        "prefill_tokens": 8192,
        "prefill_requests": 4,
        "prefill_context": 65_536,
        "prefill_pairs": 8192 * 65_536 + 8192 * 8193 // 2,
        "prefill_max_context": 8192 + 65_536,
        "decode_requests": 512,
        "decode_tokens": 512,
        "decode_context": 256 * 16_384,
        "decode_max_context": 16_384,
        "shared_context": 127 * 2048,
        "sampled_tokens": 512,
        "graph_batch": 256,
    }


# Tools.


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.floats(0, 1e9), st.integers(1, 50)), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_ascending_values_are_the_nearest(pairs, random):
    """They do not descend, keep the weighted mean, and no other ascending values are nearer."""
    values, weights = np.array(pairs, np.float64).T
    fitted = ascending(values, weights)
    assert (np.diff(fitted) >= 0).all()
    assert np.average(fitted, weights=weights) == pytest.approx(np.average(values, weights=weights))
    distance = np.sum(weights * (fitted - values) ** 2)
    for _ in range(5):
        other = np.sort([random.choice([*values, *fitted]) for _ in values])
        assert np.sum(weights * (other - values) ** 2) >= distance * (1 - 1e-9)


def test_values_that_ascend_stay():
    """Only what descends is moved, by weight."""
    values, weights = np.array([1.0, 5.0, 3.0, 3.0, 9.0]), np.array([1.0, 1.0, 3.0, 1.0, 1.0])
    assert ascending(values, weights).tolist() == [1.0, 3.4, 3.4, 3.4, 9.0]


def test_nonnegative_costs_of_amounts_of_any_size():
    """Columns that differ by ten orders of magnitude come out, one without amounts as zero."""
    amounts = np.column_stack(
        [np.ones(50), 1e10 * np.arange(50.0) ** 2, np.zeros(50), np.arange(50.0)]
    )
    ns = amounts @ np.array([1e6, 1e-7, 5.0, 0.0])
    costs = nonnegative_costs(amounts, ns, 1 / ns)
    assert costs == pytest.approx([1e6, 1e-7, 0, 0], rel=1e-6, abs=1e-3)


# What residuals say.


def test_residuals_by_region():
    """Every region that was measured has one, with as many samples as lie in it."""
    residuals = {residual.region: residual for residual in PROFILE.fit.residuals}
    prefixes = {"prefill after a prefix": 20, "mixed": 60, "eager decode": 20, "shared context": 14}
    counts = {"decode": 4 * len(GRAPH_BATCHES), "prefill": 70} | prefixes
    assert {region: residual.count for region, residual in residuals.items()} == counts
    for residual in residuals.values():
        assert residual.median_percent < 1
        assert residual.median_percent <= residual.p90_percent <= residual.p99_percent < 5
        assert abs(residual.bias_percent) <= residual.median_percent


def test_residuals_are_of_steps_that_the_fit_has_not_seen():
    """Steps that differ at random by 10 % are missed by that, though the fit could follow them."""
    shapes = [prefill(size, sampled=size % 2) for size in range(1100, 8000, 120)]
    (residual,) = fit_profile(samples_of(shapes, noise=0.1), HOST, GPU_ENGINE).residuals
    assert residual.median_percent > 4


def test_a_decode_residual_is_that_of_a_knot_by_its_neighbours():
    """The middle of three knots is predicted by the line between the others."""
    shapes = [decode(1, context, 1) for context in (100, 200, 300)]
    samples = msgspec.structs.replace(samples_of(shapes), gpu_ns=(1000, 2000, 2000))
    (residual,) = fit_profile(samples, HOST, GPU_ENGINE).residuals
    assert (residual.region, residual.count) == ("decode", 1)
    assert residual.bias_percent == pytest.approx(-25)
    assert residual.median_percent == residual.p99_percent == pytest.approx(25)


def test_batches_with_one_long_request_test_a_table_and_do_not_bend_it():
    """They are no knots as long as others suffice, and count among the residuals."""
    full = [decode(8, context, 8) for context in (100, 1000)]
    part, uneven = decode(5, 880, 8), decode(8, 550, 8)._replace(decode_max_context=4000)
    ns = (10_000, 19_000, 14_300, 15_000)
    samples = msgspec.structs.replace(samples_of([*full, part, uneven]), gpu_ns=ns)
    fit = fit_profile(samples, HOST, GPU_ENGINE)
    assert fit.decode[0].context == (800, 4400, 8000)
    assert fit.decode[0].ns == (10_000, 14_300, 19_000)
    (residual,) = fit.residuals
    assert residual.count == 2  # 14,500 without the knot, 14,300 with it
    assert residual.median_percent == pytest.approx((100 * 200 / 14_300 + 100 * 700 / 15_000) / 2)
    alone = msgspec.structs.replace(samples_of([full[0], uneven]), gpu_ns=(1, 9))
    assert fit_profile(alone, HOST, GPU_ENGINE).decode[0].context == (800, 4400)


def test_tables_without_interior_have_no_residual():
    """Two knots leave nothing to predict."""
    fit = fit_profile(samples_of([decode(1, 9, 1), decode(1, 900, 1)]), HOST, GPU_ENGINE)
    assert (fit.residuals, fit.mixed) == ((), None)


def test_one_shape_is_never_on_both_sides():
    """Samples of one shape are in one fold: repeating all of them does not make errors smaller."""
    shapes = [prefill(size, sampled=size % 2) for size in range(2500, 8000, 80)]  # not launches
    once = samples_of(shapes, noise=0.1)
    twice = Samples(**{name: getattr(once, name) * 2 for name in once.__struct_fields__})
    one, two = (fit_profile(samples, HOST, GPU_ENGINE).residuals[0] for samples in (once, twice))
    assert two.count == 2 * one.count
    assert two.median_percent == pytest.approx(one.median_percent, rel=1e-9)


# What cannot carry a fit.


@pytest.mark.parametrize(
    ("shapes", "complaint"),
    [
        ([], "there are no samples to fit to"),
        ([decode(8, 32, 8), decode(8, 32, 8)], "graph batch 8 was measured at one context"),
        ([decode(8, 32, 8), decode(8, 99, 8), prefill(4)], "1 samples of steps with prefill .* 20"),
        ([prefill(64)] * 25, "one number of tokens"),
    ],
)
def test_samples_that_cannot_carry_a_fit(shapes, complaint):
    """The error says what is missing."""
    with pytest.raises(ProfileError, match=complaint):
        fit_profile(samples_of(shapes), HOST, GPU_ENGINE)


def test_too_few_samples_of_the_host():
    """The host needs some, too."""
    few = HostSamples(
        requests=(1,) * 9, prefill_requests=(0,) * 9, prefill_tokens=(0,) * 9, host_ns=(7,) * 9
    )
    with pytest.raises(ProfileError, match="9 samples of the host's time, a fit needs 10"):
        fit_profile(SAMPLES, few, GPU_ENGINE)


def test_samples_that_do_not_belong_together():
    """Columns of different lengths, and steps that took no time, are no samples."""
    for name in ("gpu_ns", "spread_ns", "repeats"):
        shorter = msgspec.structs.replace(SAMPLES, **{name: getattr(SAMPLES, name)[1:]})
        with pytest.raises(ProfileError, match="different lengths"):
            fit_profile(shorter, HOST, GPU_ENGINE)
    shorter_host = msgspec.structs.replace(HOST, requests=HOST.requests[1:])
    with pytest.raises(ProfileError, match="of the host are of different lengths"):
        fit_profile(SAMPLES, shorter_host, GPU_ENGINE)
    with pytest.raises(ProfileError, match="a sample took no time"):
        fit_profile(
            msgspec.structs.replace(SAMPLES, gpu_ns=(0, *SAMPLES.gpu_ns[1:])), HOST, GPU_ENGINE
        )
