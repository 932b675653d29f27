"""The engine computes what transformers computes, however its steps are cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tiny_models
import torch
from kernel_device import DEVICE, relative_error
from late_executor import LateExecutor
from tiny_engine import Served, TinyEngine, make_runner

from engine.core.enums import FinishReason
from engine.core.invariants import check

OUTPUTS = 64
TEXTS = 6
GAP = 1e-5  # a text in which two logits come nearer than this has no one continuation


@dataclass(frozen=True)
class Family:
    """A tiny model on disk, and what transformers makes of some prompts.

    Attributes:
        logits: [TEXTS][OUTPUTS, V], before each token of `answers`.
    """

    folder: str
    prompts: list[list[int]]
    answers: list[list[int]]
    logits: list[torch.Tensor]


_MADE: dict[str, Family] = {}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny products are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(params=tiny_models.FAMILIES)
def family(request: pytest.FixtureRequest, folders: Path) -> Family:
    return known(request.param, folders)


def known(name: str, folders: Path) -> Family:
    """A family, made once: transformers is the slow part."""
    if name not in _MADE:
        folder = folders / name
        _MADE[name] = continued(tiny_models.make(name, folder), folder)
    return _MADE[name]


def prompts_of(rng: Random, vocab_size: int) -> list[list[int]]:
    """Prompts of 1 to 80 tokens, more than are needed; every other one shares its beginning."""
    stem = [rng.randrange(vocab_size) for _ in range(50)]
    lengths = [1, 20, 33, 17, 80, 10, 3, 29, 64, 5]
    tails = [[rng.randrange(vocab_size) for _ in range(length)] for length in lengths]
    return [stem + tail[:30] if i % 2 else tail for i, tail in enumerate(tails)]


@torch.inference_mode()
def continued(model: Any, folder: Path) -> Family:
    """Greedy continuations. Texts are padded at their ends, which a causal model does not see."""
    prompts = prompts_of(Random(7), model.config.vocab_size)
    ends = torch.tensor([len(prompt) for prompt in prompts])
    texts = torch.zeros(len(prompts), int(ends.max()) + OUTPUTS, dtype=torch.long)
    for text, prompt in zip(texts, prompts, strict=True):
        text[: len(prompt)] = torch.tensor(prompt)
    every, seen = torch.arange(len(prompts)), []
    for step in range(OUTPUTS):
        longest = int(ends.max()) + step
        seen.append(model(texts[:, :longest]).logits[every, ends + step - 1].float())
        texts[every, ends + step] = seen[-1].argmax(-1)
    logits = torch.stack(seen, 1)
    best = logits.topk(2, -1).values
    clear = [i for i, gap in enumerate((best[..., 0] - best[..., 1]).amin(-1)) if gap > GAP]
    chosen = clear[:TEXTS]
    assert len(chosen) == TEXTS
    answers = [texts[i, ends[i] : ends[i] + OUTPUTS].tolist() for i in chosen]
    return Family(str(folder), [prompts[i] for i in chosen], answers, [logits[i] for i in chosen])


def check_served(family: Family, served: Served, skip: tuple[int, ...] = ()) -> None:
    """All texts are those of transformers, token by token, and so are all logits."""
    for request_id, request in served.requests.items():
        if request_id in skip:
            continue
        assert request.finish_reason == FinishReason.LENGTH
        index = request_id % TEXTS
        logits = [served.logits[request_id, i] for i in range(request.max_tokens)]
        assert relative_error(torch.stack(logits), family.logits[index][: len(logits)]) < 1e-4
        assert served.text(request_id) == family.answers[index][: len(logits)]


@dataclass(frozen=True)
class Way:
    """One way to cut texts into steps, and what must have happened on it."""

    runner: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    happens: tuple[str, ...] = ()
    hasty: bool = False  # steps are done at once


WAYS = {
    "one by one": Way(
        dict(page_size=16, max_running_requests=1, max_num_batched_tokens=128),
        dict(max_plans_in_flight=1, prefix_cache=False),
        hasty=True,
    ),
    "all together": Way(
        dict(page_size=64, max_running_requests=8, max_num_batched_tokens=512),
        dict(max_plans_in_flight=2, prefix_cache=False),
        ("fed",),
    ),
    "chunks and hits": Way(
        dict(page_size=1, num_pages=2000, max_num_batched_tokens=16),
        dict(max_plans_in_flight=2),
        ("mixed", "chunks", "continued", "hit_tokens", "fed"),
    ),
    "short of pages": Way(
        dict(page_size=16, num_pages=18, max_running_requests=6),
        dict(max_plans_in_flight=2, schedule_conservativeness=0.01),
        ("mixed", "continued", "retracted", "fed"),
    ),
    "short of pages, alone": Way(
        dict(page_size=1, num_pages=260, max_running_requests=6),
        dict(max_plans_in_flight=1, schedule_conservativeness=0.01, prefix_cache=False),
        ("retracted",),
        hasty=True,
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_texts_and_logits_are_those_of_transformers(family: Family, way: str) -> None:
    """64 greedy tokens are identical and their logits within 1e-4, whatever the steps."""
    chosen = WAYS[way]
    runner = make_runner(family.folder, device="cpu", **chosen.runner)
    engine = TinyEngine(runner, late=not chosen.hasty, **chosen.engine)
    served = engine.serve(dict(enumerate(family.prompts)), OUTPUTS)
    check_served(family, served)
    for what in chosen.happens:
        assert served.seen[what], what
    if isinstance(engine.executor, LateExecutor):
        assert engine.executor.most_in_flight == engine.config.max_plans_in_flight
    check(engine.scheduler)
    assert engine.replay() > 0


def test_random_steps(family: Family) -> None:
    """Random settings, requests that come in waves, steps that are late at random: same texts."""
    rng = Random(Path(family.folder).name)  # the family's: where the folder lies must not matter
    page_size = rng.choice([1, 16, 64])
    running = rng.randint(1, 6)
    runner = make_runner(
        family.folder,
        device="cpu",
        page_size=page_size,
        num_pages=-(-rng.randint(200, 600) // page_size),
        max_running_requests=running,
        max_num_batched_tokens=rng.randint(running, 60),
    )
    engine = TinyEngine(
        runner,
        late=rng.getrandbits(16),
        max_plans_in_flight=rng.randint(2, 4),
        schedule_conservativeness=rng.choice([0.01, 1.0]),
        policy=rng.choice(["fcfs", "lpm"]),
        mode=rng.choice(["mixed", "prefill_first"]),
    )
    for wave in range(2):  # the second finds the first in the cache
        asked = {wave * TEXTS + i: prompt for i, prompt in enumerate(family.prompts)}
        served = engine.serve(asked, rng.randint(8, OUTPUTS // 2))
    check_served(family, served)
    assert served.seen["hit_tokens"] or page_size == 64  # most prompts do not fill such a page
    assert engine.replay() > 0


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_an_abort_disturbs_nobody(name: str, folders: Path) -> None:
    """Requests that leave in the middle give their rows and pages to others, unharmed."""
    family = known(name, folders)
    runner = make_runner(family.folder, device="cpu", max_running_requests=3)
    engine = TinyEngine(runner, late=3, max_plans_in_flight=3)
    prompts = {i: family.prompts[i % TEXTS] for i in range(3 * TEXTS)}  # more than rows
    gone = {0: 3, 5: 1, 8: 10, 9: 7}
    served = engine.serve(prompts, 12, aborts=gone)
    check_served(family, served, skip=tuple(gone))
    for request_id, outputs in gone.items():
        request = served.requests[request_id]
        assert request.finish_reason == FinishReason.ABORT
        answer = family.answers[request_id % TEXTS]
        assert outputs <= len(served.text(request_id)) < 12
        assert served.text(request_id) == answer[: len(served.text(request_id))]
    assert engine.replay() > 0


def test_engines_of_one_process_do_not_meet(folders: Path) -> None:
    """Engines of different models that take turns compute what they would alone."""
    families = [known(name, folders) for name in ("qwen3", "mixtral", "qwen3")]
    sizes = (1, 16, 64)
    engines = [
        TinyEngine(make_runner(f.folder, device="cpu", page_size=size, num_pages=400), late=True)
        for f, size in zip(families, sizes, strict=True)
    ]
    for engine, family in zip(engines, families, strict=True):
        engine.begin(dict(enumerate(family.prompts)), 20)
    while any(engine.loop.has_work for engine in engines):
        for engine in engines:
            engine.turn()
    for engine, family in zip(engines, families, strict=True):
        check_served(family, engine.served)


def test_decodes_have_addresses_of_their_own(tmp_path: Path) -> None:
    """However many tokens come before them in a mixed step, no kernel must be compiled for it."""
    tiny_models.make("llama", tmp_path)
    runner = make_runner(str(tmp_path), device=DEVICE.type, max_num_batched_tokens=7)
    transformer, seen = runner.transformer, []
    attend = transformer.kernels.decode_attention

    def spied(query: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        rows, positions = rest[3:5]
        assert len(query) == len(rows) == len(positions)
        seen.extend(tensor.data_ptr() % 16 for tensor in (rows, positions))
        return attend(query, *rest, **options)

    transformer.kernels = replace(transformer.kernels, decode_attention=spied)
    served = TinyEngine(runner).serve({i: [i + 1] * (5 + i) for i in range(4)}, 9)
    assert served.seen["mixed"] > 3
    assert set(seen) == {0}


KERNELS = {"fp32": 1e-4, "bf16": 0.05}


@pytest.mark.parametrize(("name", "dtype"), [("qwen3", "fp32"), ("mixtral", "bf16")])
def test_our_kernels_do_the_same(name: str, dtype: str, tmp_path: Path) -> None:
    """With Triton's kernels in place of torch's the logits agree, in chunks and in mixed steps."""
    shape = dict(num_hidden_layers=2, num_attention_heads=4, head_dim=16, vocab_size=96)
    model = tiny_models.make(name, tmp_path, **shape)
    rng = Random(3)
    prompts = {i: [rng.randrange(96) for _ in range(n)] for i, n in enumerate((3, 18, 1))}
    runner = make_runner(
        str(tmp_path), device=DEVICE.type, dtype=dtype, kernels={"*": "triton"}, num_pages=24,
        max_num_batched_tokens=12, max_running_requests=2,
    )  # fmt: skip
    runner._cache.pool[:, :, :-1] = torch.nan  # what requests have left behind counts for nothing
    served = TinyEngine(runner, late=True).serve(prompts, 3)
    assert set(runner.facts()["kernels"].values()) == {"triton"}
    assert served.seen["mixed"]
    assert served.seen["continued"]
    for request_id, prompt in prompts.items():
        text = served.text(request_id)
        assert len(text) == 3
        expected = tiny_models.logits(model, prompt + text)[len(prompt) - 1 : -1]
        found = torch.stack([served.logits[request_id, i] for i in range(3)])
        assert relative_error(found, expected) < KERNELS[dtype]
        assert text == found.argmax(-1).tolist()
        assert dtype == "bf16" or text == expected.argmax(-1).tolist()
