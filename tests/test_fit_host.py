"""The fit of the host's time, and of when it knows a result."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from measured_steps import host_samples

from simulator.calibrated import HostCosts
from simulator.cost_model import StepShape
from simulator.fitting.host import fit_host, fit_result_ns
from simulator.samples import HostSamples


@pytest.mark.parametrize("outliers", [0, 0.01, 0.1, 0.25])
def test_outliers_of_the_host_do_not_matter(outliers):
    """A quarter of steps may take twenty times as long."""
    fit = fit_host(host_samples(outliers), ())
    for requests, prompts, tokens in ((1, 0, 0), (64, 0, 0), (256, 0, 0), (20, 8, 2000)):
        truth = 120_000 + 4000 * requests + 50_000 * prompts + 20 * tokens
        predicted = fit.step_ns + fit.request_ns * requests
        predicted += fit.prefill_request_ns * prompts + fit.prefill_token_ns * tokens
        if prompts:
            predicted += fit.prefill_step_ns + fit.eager_prefill_step_ns
        assert predicted == pytest.approx(truth, rel=0.03)


def test_the_host_takes_longer_to_launch_kernels_one_by_one():
    """A prompt costs a launch of one graph, or of every kernel, whatever its tokens are."""
    random = np.random.default_rng(2)
    tokens = np.where(random.random(600) < 0.5, 0, random.integers(1, 2049, 600))
    truth = np.where(tokens > 0, 2_000_000, 0) + np.where(tokens > 1024, 15_000_000, 0) + 250_000
    samples = HostSamples(
        requests=(1,) * 600,
        prefill_requests=tuple((tokens > 0).astype(int).tolist()),
        prefill_tokens=tuple(tokens.tolist()),
        host_ns=tuple((truth * random.normal(1, 0.02, 600)).astype(int).tolist()),
    )
    model = HostCosts(fit_host(samples, (64, 1024)), (64, 1024))
    for prompt, expected in ((0, 0.25e6), (64, 2.25e6), (1024, 2.25e6), (1025, 17.25e6)):
        shape = StepShape(
            prefill_tokens=prompt, prefill_requests=int(prompt > 0), decode_requests=int(not prompt)
        )
        assert model.host_ns(shape) == pytest.approx(expected, rel=0.03)


def test_who_waits_for_a_result():
    """The host knows of a step when it looks, so only steps beside which it does nothing tell."""
    samples = HostSamples(
        requests=(4,) * 5, prefill_requests=(0, 0, 0, 1, 1), prefill_tokens=(0, 0, 0, 9, 9),
        host_ns=(1,) * 5, result_ns=(100_000, 120_000, 900_000, 3_000_000, 3_000_000),
    )  # fmt: skip
    assert fit_result_ns(samples) == 120_000
    assert fit_result_ns(msgspec.structs.replace(samples, result_ns=())) == 0


def test_the_cost_of_the_host_is_not_negative():
    """Time that falls with the requests is taken to be constant."""
    requests = tuple(range(1, 101))
    samples = HostSamples(
        requests=requests,
        prefill_requests=(0,) * 100,
        prefill_tokens=(0,) * 100,
        host_ns=tuple(200_000 - 100 * count for count in requests),
    )
    fit = fit_host(samples, ())
    assert fit.request_ns == fit.prefill_token_ns == 0
    assert fit.step_ns == pytest.approx(195_000, rel=0.01)


def test_a_host_that_takes_no_time():
    """Zeros are fitted by zeros."""
    zeros = (0,) * 20
    fit = fit_host(HostSamples(**dict.fromkeys(HostSamples.__struct_fields__, zeros)), ())
    assert set(msgspec.structs.astuple(fit)) == {0.0}
