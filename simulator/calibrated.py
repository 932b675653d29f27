"""The calibrated cost model: predicts steps with what a profile's fit says of one engine.

There are two kinds of steps.

Pure decode steps that run as a CUDA Graph: the table of that graph batch, linear in decode_context
between its knots. Without a table of the batch, the tables of the next smaller and the next larger
one are read at the same context per row of the graph, so that neither leaves the range in which it
was measured, and mixed in proportion to the batch. Outside all tables the nearest one is read at
the step's own context, and the step counts as extrapolated. A table is of steps that fill their
graph; each row without a request but the first takes something off. A profile without tables (of
a CPU) has no steps of this kind.

All other steps: the sum of what `simulator.profile.MixedFit` names. The table of tokens is read at
the tokens of the step, which a step with prefill pads to the next of the engine's graph_tokens.

The terms of gpu_ns:

    tokens             the table of tokens; of a decode table what its first knot says, without what
                       rows without a request take off
    attention_prefill  pairs, and context before the chunks
    attention_decode   context of the decode items; of a decode table what is above its first knot
    requests           chunks and decode items, and that a step decodes without a graph
    logits             a constant where there are any, and their rows

Context that several requests share is read from memory once, and by the others from the cache of
the GPU: a table says how much of it costs nothing, by what a decode item shares in the mean. That,
times the decode items and rounded to a whole token, is taken off decode_context before any table is
read; where more is shared than decode items attend to, what is left is below 0, where tables are
flat.

Rounding: each term is rounded by itself to whole ns, halves up, and gpu_ns is their sum; tokens is
at least 1, and attention_decode of a decode table is the difference of two rounded values. Every
float operation is one IEEE double +, -, * or max, in the same order in Python and in numpy, so
that both give the same integers.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.core.graph_sizes import graph_tokens_for
from simulator.cost_model import Int64, StepCosts, StepFeatures, StepShape, sum_of_terms, whole_ns
from simulator.curves import DecodeCurves, SharedContext
from simulator.mixed_costs import MixedCosts, is_eager_prefill, launch_kind, launch_kinds
from simulator.power_state import PowerFit
from simulator.profile import (
    CPU,
    Fit,
    HostFit,
    LaunchFit,
    Profile,
    ProfileError,
)
from simulator.waking import WakeFit

TERMS: Final = (
    "tokens", "attention_prefill", "attention_decode", "requests", "logits", "launches"
)  # fmt: skip

_EMPTY_STEP: Final = "a step has at least one token"
_NO_LIMIT: Final = 1 << 62


class FittedCostModel:
    """Step costs as a fit has them; implements `CostModel`.

    Args:
        name: who speaks.
        fit: what predictions are made of.
        graph_tokens: to which the engine pads steps with prefill, ascending.
        known_kinds: of `launch_kinds`, of which steps were measured: bool[kinds].
    """

    def __init__(
        self, name: str, fit: Fit, graph_tokens: Sequence[int], known_kinds: NDArray[np.bool_]
    ) -> None:
        self._name = name
        self._power, self._wake = fit.power, fit.wake
        self._mixed = None if fit.mixed is None else MixedCosts(fit.mixed, graph_tokens)
        rise_ns = None if self._mixed is None else self._mixed.rise_ns
        self._decode = DecodeCurves(fit.decode, rise_ns)
        self._shared = SharedContext(fit.shared)
        self._host = HostCosts(fit.host, graph_tokens)
        self._graph_tokens = tuple(graph_tokens)
        self._known_kinds = known_kinds
        self._limits = tuple(fit.limits.get(name, _NO_LIMIT) for name in StepShape._fields)

    @property
    def name(self) -> str:
        """Stands in every result that this model made."""
        return self._name

    @property
    def power(self) -> PowerFit | None:
        """As it was fitted."""
        return self._power

    @property
    def wake(self) -> WakeFit | None:
        """As it was fitted."""
        return self._wake

    def step_costs(self, features: StepFeatures) -> StepCosts:
        """Costs of many steps, with their terms."""
        f = features
        if len(f) and int((f.prefill_tokens + f.decode_tokens).min()) < 1:
            raise ValueError(_EMPTY_STEP)
        extrapolated = np.zeros(len(f), np.bool_)
        for column, limit in zip(_columns(f), self._limits, strict=True):
            extrapolated |= column > limit
        unknown_kind = ~self._known_kinds[launch_kinds(f, self._graph_tokens)]
        f = replace(f, decode_context=self._shared.attended(f))
        if not self._decode:
            extrapolated |= unknown_kind
            terms = self._other_steps().terms(f)
        else:
            graphed = (f.prefill_tokens == 0) & (f.graph_batch > 0)
            extrapolated |= np.where(graphed, self._decode.are_outside(f.graph_batch), unknown_kind)
            terms = self._terms_of_both(f, graphed)
        return StepCosts(sum_of_terms(terms), self._host.column(f), terms, extrapolated)

    def _terms_of_both(self, f: StepFeatures, graphed: NDArray[np.bool_]) -> dict[str, Int64]:
        """The terms of steps some of which are decode graphs."""
        if len(f) and not graphed.any():
            return self._other_steps().terms(f)
        terms = {name: np.zeros(len(f), np.int64) for name in TERMS}
        terms["tokens"][graphed], terms["attention_decode"][graphed] = self._decode.terms(
            f.graph_batch[graphed], f.decode_context[graphed], f.decode_requests[graphed]
        )
        if not graphed.all():
            others = StepFeatures(*(column[~graphed] for column in _columns(f)))
            for name, ns in self._other_steps().terms(others).items():
                terms[name][~graphed] = ns
        return terms

    def step_cost(self, shape: StepShape) -> tuple[int, int, bool]:
        """(gpu_ns, host_ns, extrapolated) of one step."""
        prefill, _, _, _, _, requests, tokens, context, _, shared, _, graph_batch, _ = shape
        if prefill + tokens < 1:
            raise ValueError(_EMPTY_STEP)
        extrapolated = any(map(operator.gt, shape, self._limits))
        if shared:
            context -= self._shared.saved(shared, requests)
        if graph_batch > 0 and not prefill and self._decode:
            gpu_ns = self._decode.curve(graph_batch).whole_ns(context)
            gpu_ns -= self._decode.idle_ns(graph_batch, requests)
            extrapolated = extrapolated or self._decode.is_outside(graph_batch)
        else:
            gpu_ns = self._other_steps().gpu_ns(shape, context)
            extrapolated = extrapolated or self._is_of_unknown_kind(shape)
        return gpu_ns, self._host.host_ns(shape), extrapolated

    def decode_run(self, shape: StepShape, num_steps: int) -> tuple[list[int], int, bool]:
        """gpu_ns of successive pure decode steps, the host_ns of each, whether extrapolated."""
        prefill, _, _, _, _, requests, tokens, context, longest, shared, _, graph_batch, _ = shape
        if prefill or tokens < 1:
            raise ValueError("a decode run decodes and does not prefill")
        first = context - self._shared.saved(shared, requests) if shared else context
        contexts = range(first, first + num_steps * tokens, tokens)
        last = shape._replace(
            decode_context=context + (num_steps - 1) * tokens,
            decode_max_context=longest + num_steps - 1,
        )
        extrapolated = num_steps > 0 and any(map(operator.gt, last, self._limits))
        if graph_batch > 0 and self._decode:
            gpu_ns = self._decode.curve(graph_batch).run(contexts)
            if idle_ns := self._decode.idle_ns(graph_batch, requests):
                gpu_ns = [ns - idle_ns for ns in gpu_ns]
            extrapolated = extrapolated or (num_steps > 0 and self._decode.is_outside(graph_batch))
        else:
            gpu_ns = self._other_steps().run(shape, contexts)
            extrapolated = extrapolated or (num_steps > 0 and self._is_of_unknown_kind(shape))
        return gpu_ns, self._host.host_ns(shape), extrapolated

    def _is_of_unknown_kind(self, shape: StepShape) -> bool:
        """Whether no step was measured that launches its kernels as this one does."""
        return not self._known_kinds[launch_kind(shape, self._graph_tokens)]

    def _other_steps(self) -> MixedCosts:
        if self._mixed is None:
            raise ProfileError(
                f"the profile {self._name} has only decode steps that run as CUDA Graphs: calibrate"
                " with prefill to predict other steps"
            )
        return self._mixed


class CalibratedCostModel(FittedCostModel):
    """Step costs as a profile has them.

    Args:
        profile: what was measured and fitted.
    """

    def __init__(self, profile: Profile) -> None:
        kinds = _measured_kinds(profile)
        fit = _without_graphs(profile.fit) if profile.identity.gpu == CPU else profile.fit
        super().__init__(profile.name, fit, profile.engine.graph_tokens, kinds)


class HostCosts:
    """CPU time of steps, as fitted.

    Args:
        fit: what their parts cost.
        graph_tokens: to which steps with prefill are padded, ascending.
    """

    def __init__(self, fit: HostFit, graph_tokens: Sequence[int]) -> None:
        self._fit, self._graph_tokens = fit, tuple(graph_tokens)

    def column(self, features: StepFeatures) -> Int64:
        """host_ns of many steps."""
        f, fit = features, self._fit
        requests = f.prefill_requests + f.decode_requests
        prompts_ns = fit.prefill_request_ns * f.prefill_requests
        prompts_ns = prompts_ns + fit.prefill_token_ns * f.prefill_tokens
        prompts_ns = prompts_ns + np.where(f.prefill_tokens > 0, fit.prefill_step_ns, 0.0)
        eager = is_eager_prefill(f, self._graph_tokens)
        prompts_ns = prompts_ns + np.where(eager, fit.eager_prefill_step_ns, 0.0)
        return whole_ns(fit.step_ns + fit.request_ns * requests + prompts_ns)

    def host_ns(self, shape: StepShape) -> int:
        """host_ns of one step."""
        fit, prompts_ns = self._fit, 0.0
        requests = shape.prefill_requests + shape.decode_requests
        if shape.prefill_tokens:
            prompts_ns = fit.prefill_request_ns * shape.prefill_requests
            prompts_ns += fit.prefill_token_ns * shape.prefill_tokens
            prompts_ns += fit.prefill_step_ns
            tokens = shape.prefill_tokens + shape.decode_tokens
            if not graph_tokens_for(self._graph_tokens, tokens, shape.prefill_requests):
                prompts_ns += fit.eager_prefill_step_ns
        return int(fit.step_ns + fit.request_ns * requests + prompts_ns + 0.5)


def _without_graphs(fit: Fit) -> Fit:
    """The same for steps that may bear a GPU's graph size, of which nothing depends on a CPU."""
    limits = {name: most for name, most in fit.limits.items() if name != "graph_batch"}
    return msgspec.structs.replace(fit, limits=limits)


def _measured_kinds(profile: Profile) -> NDArray[np.bool_]:
    """Whether steps of each of the `launch_kinds` were measured: bool[kinds]."""
    kinds = np.zeros(len(LaunchFit.__struct_fields__), np.bool_)
    f = profile.samples.features()
    others = (f.prefill_tokens > 0) | (f.graph_batch == 0)
    kinds[launch_kinds(f, profile.engine.graph_tokens)[others]] = True
    return kinds


def _columns(features: StepFeatures) -> list[Int64]:
    return [getattr(features, field.name) for field in fields(features)]
