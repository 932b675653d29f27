"""Sampling: the kernels against the reference, and the reference against the laws of chance."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from kernel_device import DEVICE, ON_GPU

from engine.kernels import sampling_filter, sampling_scan
from engine.kernels.sampling import ERROR_TOKEN, IMPLEMENTATIONS, SampleResult, SamplingBatch
from engine.kernels.sampling_random import gumbel_reference, philox_reference
from engine.kernels.sampling_reference import keep_reference
from engine.sampling_params import SamplingParams

INF = math.inf
MIXED = (
    SamplingParams(temperature=0),
    SamplingParams(temperature=0.8),
    SamplingParams(top_k=40),
    SamplingParams(top_p=0.9),
    SamplingParams(min_p=0.05, temperature=1.5),
    SamplingParams(top_k=50, top_p=0.8, min_p=0.01),
    SamplingParams(top_k=3000, top_p=0.95, temperature=4.0),
    SamplingParams(top_k=2, temperature=0.3),
)
BOTH = pytest.mark.parametrize("name", list(IMPLEMENTATIONS))


def _seeds(count: int) -> list[int]:
    return torch.randint(-(2**62), 2**62, (count,)).tolist()


def _batch(params: list[SamplingParams] | tuple[SamplingParams, ...], **more) -> SamplingBatch:
    seeds = more.get("seeds") or _seeds(len(params))
    steps = more.get("steps") or torch.randint(0, 10**6, (len(params),)).tolist()
    return SamplingBatch.of(params, seeds, steps, DEVICE)


def _tokens(name: str, logits: torch.Tensor, batch: SamplingBatch) -> list[int]:
    return IMPLEMENTATIONS[name](logits.to(DEVICE), batch).tokens.tolist()


def _assert_same(out: SampleResult, expected: SampleResult) -> None:
    assert out.tokens.dtype == expected.tokens.dtype == torch.int32
    assert out.tokens.tolist() == expected.tokens.tolist()
    for field in ("logprobs", "top_logprobs"):
        ours, theirs = getattr(out, field), getattr(expected, field)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5, equal_nan=True)
    if out.top_ids is not None:
        assert out.top_ids.tolist() == expected.top_ids.tolist()


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(
    key: tuple[int, int], counter: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """The generator is Philox4x32-10, by the known answers of its authors' library Random123."""
    words = philox_reference(
        tuple(torch.tensor([k]) for k in key), tuple(torch.tensor([c]) for c in counter)
    )
    assert tuple(int(word) for word in words) == expected


def test_gumbel_noise_is_gumbel() -> None:
    """Noise over many ids, seeds and steps has the quantiles of exp(-exp(-x))."""
    noise = gumbel_reference(torch.tensor(_seeds(8)), torch.arange(8), 40_000).double().flatten()
    uniform, _ = torch.exp(-torch.exp(-noise)).sort()
    ideal = (torch.arange(len(uniform)) + 0.5) / len(uniform)
    assert (uniform - ideal).abs().max().item() < 3.5 / math.sqrt(len(uniform))


@pytest.mark.parametrize("programs", [1056, 6])
@pytest.mark.parametrize(
    ("vocab", "dtype"), [(37, torch.float32), (5003, torch.bfloat16), (9001, torch.float32)]
)
def test_triton_equals_reference(
    vocab: int, dtype: torch.dtype, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy, drawn and filtered rows side by side: the same tokens, however a row is split."""
    monkeypatch.setattr(sampling_scan, "PROGRAMS", programs)
    wide = (torch.randn(len(MIXED), vocab + 16, device=DEVICE) * 3).to(dtype)
    batch = _batch(MIXED)
    logits = wide[:, :vocab]
    _assert_same(IMPLEMENTATIONS["triton"](logits, batch), IMPLEMENTATIONS["torch"](logits, batch))


@pytest.mark.parametrize("chosen", [(0,), (0, 1), (1, 2, 4), (3,)])
def test_fewer_kernels_when_the_host_knows_more(chosen: tuple[int, ...]) -> None:
    """Each combination of flags runs what it needs."""
    logits = torch.randn(len(chosen), 5003, device=DEVICE) * 3
    batch = _batch([MIXED[i] for i in chosen])
    _assert_same(IMPLEMENTATIONS["triton"](logits, batch), IMPLEMENTATIONS["torch"](logits, batch))


def test_more_candidates_than_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """If filters let through more tokens than can be copied out, the row itself is searched."""
    monkeypatch.setattr(sampling_filter, "CAPACITY", 16)
    logits = torch.randn(len(MIXED), 1500, device=DEVICE)
    batch = _batch(MIXED)
    _assert_same(IMPLEMENTATIONS["triton"](logits, batch), IMPLEMENTATIONS["torch"](logits, batch))


@pytest.mark.parametrize("vocab", [3, 5003])
def test_logprobs_and_top_logprobs(vocab: int) -> None:
    """Log-probabilities are the raw model's; the top ones fall, lowest id first among equals."""
    logits = (torch.randn(3, vocab, device=DEVICE) * 2).bfloat16()
    logits[0, : vocab // 2 + 1] = logits[0].max()
    logits[1, 0] = -INF
    params = [
        SamplingParams(temperature=0, logprobs=5),
        SamplingParams(temperature=2.0, top_k=2),
        SamplingParams(logprobs=0),
    ]
    batch = _batch(params)
    out = IMPLEMENTATIONS["triton"](logits, batch)
    _assert_same(out, IMPLEMENTATIONS["torch"](logits, batch))
    expected = logits.double().log_softmax(1)
    chosen = expected.gather(1, out.tokens.long()[:, None])[:, 0]
    torch.testing.assert_close(out.logprobs.double(), chosen, rtol=0, atol=2e-5)
    order = expected.sort(dim=1, descending=True, stable=True)
    for row in range(3):
        finite = min(5, int((expected[row] > -INF).sum()))
        assert out.top_ids[row, :finite].tolist() == order.indices[row, :finite].tolist()
        assert out.top_ids[row, finite:].tolist() == [-1] * (5 - finite)
        assert (out.top_logprobs[row, finite:] == -INF).all()
        got, real = out.top_logprobs[row, :finite].double(), order.values[row, :finite]
        torch.testing.assert_close(got, real, rtol=0, atol=2e-5)


def _brute_force_keep(row: list[float], k: int, p: float, least: float) -> set[int]:
    """The tokens that min-p, top-k and top-p leave, by the sentences that define them."""
    best = max(row)
    left = {i for i, x in enumerate(row) if math.exp(x - best) >= least}
    if k:
        left = {i for i in left if sum(row[j] > row[i] for j in left) < k}
    total = sum(math.exp(row[i] - best) for i in left)
    return {
        i
        for i in left
        if p >= 1 or sum(math.exp(row[j] - best) for j in left if row[j] > row[i]) < p * total
    }


def test_filters_mean_what_they_say() -> None:
    """min-p, then top-k, then top-p on what is left, equal tokens sharing their fate."""
    choices = itertools.product([0, 1, 3, 7, 40], [0.13, 0.57, 0.91, 1.0], [0.0, 0.0321, 0.37])
    for k, p, least in choices:
        row = (torch.randint(-8, 8, (40,)) * 0.37).tolist()
        distance = max(row) - torch.tensor([row], dtype=torch.float64).float()
        distance -= distance.min()
        keep = keep_reference(
            distance, torch.tensor([k], dtype=torch.int32), torch.tensor([p]), torch.tensor([least])
        )
        assert set(keep[0].nonzero().flatten().tolist()) == _brute_force_keep(row, k, p, least)


def _assert_frequencies(tokens: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Chi-square at about one false alarm in ten million (Wilson-Hilferty)."""
    counts = torch.bincount(tokens.cpu().long(), minlength=len(probabilities)).double()
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible] * counts.sum()
    assert expected.min() >= 5, "the test needs more draws"
    statistic = ((counts[possible] - expected) ** 2 / expected).sum().item()
    freedom = int(possible.sum()) - 1
    spread = 2 / (9 * freedom)
    assert statistic < freedom * (1 - spread + 5.2 * math.sqrt(spread)) ** 3


@pytest.mark.parametrize("name", ["torch", "triton"] if ON_GPU else ["torch"])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.6),
        SamplingParams(temperature=2.5),
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.8),
        SamplingParams(min_p=0.15),
        SamplingParams(temperature=1.7, top_k=12, top_p=0.9, min_p=0.05),
    ],
)
def test_frequencies_match_the_softmax(name: str, params: SamplingParams) -> None:
    """Over many seeds and steps a token comes up as often as its probability says."""
    draws, vocab = 30_000, 24
    row = torch.randn(vocab).clamp(-1.6, 1.6)
    scaled = (row.double() / params.temperature).tolist()
    keep = _brute_force_keep(scaled, params.top_k, params.top_p, params.min_p)
    weights = [math.exp(x) if i in keep else 0.0 for i, x in enumerate(scaled)]
    probabilities = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    steps = torch.arange(draws) % 100
    batch = _batch([params] * draws, seeds=torch.arange(draws).tolist(), steps=steps.tolist())
    logits = row.expand(draws, vocab).contiguous().to(DEVICE)
    _assert_frequencies(IMPLEMENTATIONS[name](logits, batch).tokens, probabilities)


def test_frequencies_of_the_kernel() -> None:
    """Few tokens, one row per draw, in the interpreter too."""
    draws = 60
    row = torch.tensor([0.0, 0.7, -0.4])
    batch = _batch([SamplingParams()] * draws)
    logits = row.expand(draws, 3).contiguous().to(DEVICE)
    tokens = IMPLEMENTATIONS["triton"](logits, batch).tokens
    _assert_frequencies(tokens, row.double().softmax(0))


@BOTH
def test_a_draw_depends_on_seed_and_step_alone(name: str) -> None:
    """Other rows, another order and another batch size leave a request's tokens as they were."""
    logits = torch.randn(6, 4500)
    params = [MIXED[i] for i in (1, 2, 3, 5, 1, 4)]
    seeds, steps = _seeds(6), [0, 3, 3, 9, 0, 1]
    whole = _tokens(name, logits, _batch(params, seeds=seeds, steps=steps))
    for chosen in ([3], [5, 0, 4], [4, 2, 1]):
        some = _batch(
            [params[i] for i in chosen],
            seeds=[seeds[i] for i in chosen],
            steps=[steps[i] for i in chosen],
        )
        assert _tokens(name, logits[chosen], some) == [whole[i] for i in chosen]


@BOTH
def test_another_seed_or_step_is_another_draw(name: str) -> None:
    """Of 5000 equally probable tokens, two draws agree once in 5000."""
    logits = torch.zeros(4, 5000)
    high = 5 + 2**40  # a seed that differs in its upper half only
    batch = _batch([SamplingParams()] * 4, seeds=[5, 5, 6, high], steps=[0, 1, 0, 0])
    assert len(set(_tokens(name, logits, batch))) >= 3


@BOTH
def test_greedy_takes_the_lowest_of_equals(name: str) -> None:
    """Ties within a run, across runs and across splits go to the lowest id."""
    logits = torch.randn(4, 9001).clamp(max=4.0)
    for row, ids in enumerate([(17, 18), (1023, 1024, 4096), (4095, 8200), (9000,)]):
        logits[row, list(ids)] = 5.0
    batch = _batch([SamplingParams(temperature=0)] * 4)
    assert batch.all_greedy
    assert _tokens(name, logits.bfloat16(), batch) == [17, 1023, 4095, 9000]


@BOTH
def test_top_k_of_one_is_greedy(name: str) -> None:
    """At any temperature; so is a top_p that one token reaches, and a min_p of 1."""
    logits = torch.randn(4, 700)
    params = [
        SamplingParams(top_k=1, temperature=9.0),
        SamplingParams(top_p=1e-6),
        SamplingParams(min_p=1.0, temperature=3.0),
        SamplingParams(temperature=0, top_k=3),
    ]
    assert _tokens(name, logits, _batch(params)) == logits.argmax(1).tolist()


@BOTH
@pytest.mark.parametrize("params", [MIXED[0], MIXED[1], MIXED[5]])
def test_broken_rows_fail_alone(name: str, params: SamplingParams) -> None:
    """NaN, +inf or nothing but -inf: token -1, fed as 0; the rows beside are as without them."""
    logits = torch.randn(5, 5000, device=DEVICE)
    seeds, steps = _seeds(5), [0] * 5
    params = SamplingParams(
        temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, logprobs=0
    )
    batch = _batch([params] * 5, seeds=seeds, steps=steps)
    whole = _tokens(name, logits, batch)
    logits[0, 4999], logits[2, 3], logits[4] = math.nan, INF, -INF
    last = torch.full((7,), 99, dtype=torch.int32, device=DEVICE)
    rows = torch.tensor([5, 0, 1, 3, 2], dtype=torch.int32, device=DEVICE)
    out = IMPLEMENTATIONS[name](logits, batch, last, rows)
    expected = [ERROR_TOKEN, whole[1], ERROR_TOKEN, whole[3], ERROR_TOKEN]
    assert out.tokens.tolist() == expected
    assert out.logprobs.isnan().tolist() == [True, False, True, False, True]
    assert last.tolist() == [whole[1], 0, 0, whole[3], 99, 0, 99]


@BOTH
def test_minus_infinity_is_never_drawn(name: str) -> None:
    """Excluded tokens stay excluded, even if top_k asks for more tokens than are left."""
    logits = torch.full((4, 5000), -INF)
    allowed = torch.tensor([3, 4097, 4998])
    logits[:, allowed] = torch.randn(4, 3)
    params = [MIXED[1], MIXED[2], MIXED[3], SamplingParams(temperature=50.0, top_k=10, top_p=0.99)]
    assert set(_tokens(name, logits, _batch(params))) <= set(allowed.tolist())


@BOTH
def test_padding_feeds_the_dummy_row(name: str) -> None:
    """Padded rows write the dummy row alone, and rows that take no part keep their last token."""
    logits = torch.randn(4, 50, device=DEVICE)
    batch = _batch([MIXED[0]] * 4)
    last = torch.full((6,), 77, dtype=torch.int32, device=DEVICE)
    rows = torch.tensor([3, 1, 5, 5], dtype=torch.int32, device=DEVICE)
    tokens = IMPLEMENTATIONS[name](logits, batch, last, rows).tokens.tolist()
    assert last[:5].tolist() == [77, tokens[1], 77, tokens[0], 77]
    assert last[5].item() in tokens[2:]


def test_scattered_logits_are_refused() -> None:
    """A kernel that reads neighbours would read other numbers."""
    logits = torch.randn(50, 2, device=DEVICE).t()
    with pytest.raises(ValueError, match="contiguous"):
        IMPLEMENTATIONS["triton"](logits, _batch([MIXED[0]] * 2))
