"""Trains one model: fixed seed, fixed number of steps, cosine schedule, loss in bits per byte."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from demo_training.model import Decoder, Mixture, Routing, mixed_precision
from demo_training.muon import Optimizer
from demo_training.shapes import CONTEXT_TOKENS, Shape

Balance = Literal["none", "aux", "bias"]

SEED: Final = 20260
_WARM_UP_STEPS: Final = 100
_LOGGED_EVERY: Final = 20
_JUDGED_TIMES: Final = 20
_QUICK_WINDOWS: Final = 64
_JUDGED_WINDOWS: Final = 32  # at once; one shape only, or each would be compiled
_AUX_WEIGHT: Final = 0.01
_BIAS_RATE: Final = 0.001
_TEACHER_SHARE: Final = 0.5  # of the draft's loss; the rest is the text itself
_LARGEST_GRADIENT: Final = 1.0


@dataclass(frozen=True, slots=True)
class Data:
    """Token ids on the device, and how much text they stand for.

    Attributes:
        train: int32[n].
        held_out: int32[m].
        held_out_bytes: UTF-8 bytes of the held-out text.
    """

    train: Tensor
    held_out: Tensor
    held_out_bytes: int

    @classmethod
    def load(
        cls, train: NDArray[np.uint16], held_out: NDArray[np.uint16], held_out_bytes: int,
        device: torch.device,
    ) -> Data:  # fmt: skip
        """From arrays of the host."""
        both = [torch.from_numpy(x.astype(np.int32)).to(device) for x in (train, held_out)]
        return cls(both[0], both[1], held_out_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one model is trained.

    Attributes:
        name: of the model.
        shape: of the model.
        steps: of the optimizer.
        batch: texts of `CONTEXT_TOKENS` per step.
        balance: how experts are kept equally busy.
    """

    name: str
    shape: Shape
    steps: int
    batch: int = 32
    balance: Balance = "none"


@dataclass(slots=True)
class Log:
    """What a training run measured.

    Attributes:
        facts: of the run.
        train: rows of step, mean loss in nats per token since the row before.
        held_out: rows of step, bits per byte.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    train: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)


def train(
    plan: Plan,
    data: Data,
    *,
    compiled: bool,
    teacher: Decoder | None = None,
    say: Callable[[str], None] = print,
) -> tuple[Decoder, Log]:
    """Train a model from its seed.

    Args:
        plan: what to train.
        data: on the device to train on.
        compiled: compile the layers, which takes half a minute and is worth it on a GPU.
        teacher: a model whose probabilities the new one shall learn, too.
        say: told about progress.
    """
    device = data.train.device
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    model = Decoder(plan.shape).to(device)
    loss_of: Callable[..., Tensor] = _loss
    if compiled:
        torch._dynamo.config.recompile_limit = 64  # noqa: SLF001 - the documented way
        for layer in model.layers:  # all share one compilation
            layer.compile(dynamic=False)
        loss_of = torch.compile(_loss, dynamic=False)
    optimizer = Optimizer(model, compiled=compiled)
    picker = torch.Generator().manual_seed(SEED)
    log, losses, started = Log(), [], time.perf_counter()
    warm, judging_s = started, 0.0
    for step in range(plan.steps):
        windows = _windows(data.train, plan.batch, picker)
        with mixed_precision(device):
            hidden, routings = model.hidden(windows[:, :-1])
            taught = None if teacher is None else _probabilities(teacher, windows[:, :-1])
            loss = loss_of(hidden, model.embed_tokens.weight, windows[:, 1:], taught)
        total = loss
        if plan.balance == "aux":
            total = total + _AUX_WEIGHT * sum(map(_unevenness, routings))
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_GRADIENT, foreach=True)
        optimizer.step(_share(step, plan.steps))
        if plan.balance == "bias":
            _move_biases(model, routings)
        losses.append(loss.detach())
        if step == min(20, plan.steps // 2):
            _synchronize(device)
            warm, judging_s = time.perf_counter(), 0.0
        if (step + 1) % _LOGGED_EVERY == 0 or step + 1 == plan.steps:
            log.train.append((step + 1, float(torch.stack(losses).mean())))
            losses.clear()
        if (step + 1) % max(1, plan.steps // _JUDGED_TIMES) == 0 and step + 1 < plan.steps:
            _synchronize(device)
            before = time.perf_counter()
            log.held_out.append((step + 1, bits_per_byte(model, data, _QUICK_WINDOWS)))
            judging_s += time.perf_counter() - before
            passed = time.perf_counter() - started
            say(f"{plan.name} {step + 1}/{plan.steps} {passed:.0f} s, train"
                f" {log.train[-1][1] if log.train else math.nan:.3f} nats per token,"
                f" held out {log.held_out[-1][1]:.4f} bits per byte")  # fmt: skip
    _synchronize(device)
    timed = plan.steps - 1 - min(20, plan.steps // 2)
    tokens = plan.batch * CONTEXT_TOKENS
    seconds = time.perf_counter()
    log.held_out.append((plan.steps, bits_per_byte(model, data)))
    log.facts = {
        "steps": plan.steps,
        "tokens": plan.steps * tokens,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds - started,
        "tokens_per_s": timed * tokens / max(seconds - warm - judging_s, 1e-9),
        "balance": plan.balance,
        "held_out_bits_per_byte": log.held_out[-1][1],
    }
    say(f"{plan.name}: {log.facts}")
    return model, log


@torch.no_grad()
def held_out_nats(model: Decoder, data: Data, windows: int | None = None) -> tuple[float, int]:
    """Loss on the held-out text: nats in all, and tokens; `windows` of it or all of it."""
    tokens = data.held_out
    length = min(CONTEXT_TOKENS, len(tokens) - 1)
    count = min(windows or 1 << 30, (len(tokens) - 1) // length)
    count -= count % _JUDGED_WINDOWS if count > _JUDGED_WINDOWS else 0
    nats = torch.zeros((), dtype=torch.float64, device=tokens.device)
    for first in range(0, count, _JUDGED_WINDOWS):
        rows = range(first, min(first + _JUDGED_WINDOWS, count))
        batch = torch.stack([tokens[r * length : (r + 1) * length + 1] for r in rows]).long()
        with mixed_precision(tokens.device):
            logits = model(batch[:, :-1])
        nats += functional.cross_entropy(
            logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum"
        )
    return float(nats), count * length


def bits_per_byte(model: Decoder, data: Data, windows: int | None = None) -> float:
    """Held-out loss; tokens that end texts cost bits and stand for no bytes."""
    nats, tokens = held_out_nats(model, data, windows)
    return nats / math.log(2) / (tokens * data.held_out_bytes / len(data.held_out))


def _loss(hidden: Tensor, output: Tensor, targets: Tensor, taught: Tensor | None) -> Tensor:
    """Mean nats per token; with a teacher, half of it against the teacher's probabilities."""
    logits = functional.linear(hidden, output).flatten(0, 1).float()
    loss = functional.cross_entropy(logits, targets.flatten())
    if taught is None:
        return loss
    soft = functional.cross_entropy(logits, taught.flatten(0, 1).float())
    return (1 - _TEACHER_SHARE) * loss + _TEACHER_SHARE * soft


@torch.no_grad()
def _probabilities(teacher: Decoder, tokens: Tensor) -> Tensor:
    return teacher(tokens).float().softmax(-1)


def _unevenness(routing: Routing) -> Tensor:
    """The auxiliary loss of Switch Transformers (arXiv:2101.03961): 1 if all are equally busy."""
    experts = routing.probabilities.shape[1]
    load = _load(routing, experts)
    return experts * (load * routing.probabilities.mean(0)).sum()


def _load(routing: Routing, experts: int) -> Tensor:
    """Share of the choices that fell on each expert, float32[E]."""
    counts = torch.zeros(experts, device=routing.experts.device)
    chosen = routing.experts.flatten()
    return counts.index_add(0, chosen, torch.ones_like(chosen, dtype=counts.dtype)) / len(chosen)


@torch.no_grad()
def _move_biases(model: Decoder, routings: list[Routing]) -> None:
    """Make busy experts a little less likely to be chosen, idle ones a little more."""
    mixtures = [layer.mlp for layer in model.layers if isinstance(layer.mlp, Mixture)]
    for mixture, routing in zip(mixtures, routings, strict=True):
        experts = len(mixture.bias)
        mixture.bias += _BIAS_RATE * (1 / experts - _load(routing, experts)).sign()


def _windows(tokens: Tensor, batch: int, picker: torch.Generator) -> Tensor:
    """int64[batch, CONTEXT_TOKENS + 1] from anywhere in the text."""
    length = min(CONTEXT_TOKENS, len(tokens) - 2) + 1
    starts = torch.randint(len(tokens) - length, (batch, 1), generator=picker)
    places = starts.to(tokens.device) + torch.arange(length, device=tokens.device)
    return tokens[places].long()


def _share(step: int, steps: int) -> float:
    """Of the full learning rate: linear warm-up, then half a cosine down to nothing."""
    warm_up = min(_WARM_UP_STEPS, steps // 10 + 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
