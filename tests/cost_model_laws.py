"""Laws that hold of every cost model."""

from __future__ import annotations

import pytest

from simulator.cost_model import CostModel, StepFeatures, StepShape


def check_decode_run(model: CostModel, shape: StepShape, num_steps: int) -> None:
    """decode_run equals step_costs of the steps written out, bit for bit."""
    run = [
        shape._replace(
            decode_context=shape.decode_context + i * shape.decode_tokens,
            decode_max_context=shape.decode_max_context + i,
        )
        for i in range(num_steps)
    ]
    costs = model.step_costs(StepFeatures.from_shapes(run))
    gpu, host, extrapolated = model.decode_run(shape, num_steps)
    assert gpu == costs.gpu_ns.tolist()
    assert set(costs.host_ns.tolist()) <= {host}
    assert extrapolated == bool(costs.extrapolated.any())


def check_growing(
    model: CostModel, shape: StepShape, feature: str, more: int, *, of_host: bool = True
) -> None:
    """A step with more of something costs neither the GPU nor, if asked, the host less."""
    larger = shape._replace(**{feature: getattr(shape, feature) + more})
    assert model.step_cost(larger)[0] >= model.step_cost(shape)[0]
    assert not of_host or model.step_cost(larger)[1] >= model.step_cost(shape)[1]


def check_empty_steps(model: CostModel) -> None:
    """No method invents the cost of a step without tokens, or of a run that does not decode."""
    empty, some = StepShape(graph_batch=8), StepShape(prefill_tokens=3, prefill_requests=1)
    with pytest.raises(ValueError, match="at least one token"):
        model.step_cost(empty)
    for shapes in ([empty], [some, empty]):
        with pytest.raises(ValueError, match="at least one token"):
            model.step_costs(StepFeatures.from_shapes(shapes))
    for shape in (empty, StepShape(prefill_tokens=1, decode_requests=1, decode_tokens=1)):
        with pytest.raises(ValueError, match="decodes and does not prefill"):
            model.decode_run(shape, 3)
