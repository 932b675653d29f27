"""How many KV pages fit, and what to do when none does."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.core.hardware_spec import gpu_names, load_hardware_spec
from engine.core.memory_plan import (
    MemoryPlanError,
    activation_bytes_per_token,
    plan_kv_pages,
)
from engine.core.model_spec import TensorParallelError, load_model_spec, model_card_names

GIB = 1 << 30
LLAMA = load_model_spec("Llama-3.1-8B")
H200 = load_hardware_spec("h200")

models = st.sampled_from([load_model_spec(name) for name in model_card_names()])
gpus = st.sampled_from([load_hardware_spec(name) for name in gpu_names()])


def pages(model=LLAMA, gpu=H200, **options) -> int:
    """Pages that fit, 0 if none."""
    try:
        return plan_kv_pages(model, gpu, **options).num_pages
    except MemoryPlanError:
        return 0


@given(
    models,
    gpus,
    st.sampled_from([1, 16, 64]),
    st.sampled_from([1, 2, 8]),
    st.floats(0.05, 1.0),
    st.integers(1, 65_536),
    st.sampled_from([None, "fp8", "int8", "fp32"]),
)
def test_the_sum_is_exact(model, gpu, page_size, tp, fraction, tokens, kv_dtype):
    """Weights, reserve and pages never exceed the usable memory, and one page more would."""
    assume(model.num_heads % tp == 0)
    options = {
        "page_size": page_size,
        "tensor_parallel_size": tp,
        "memory_fraction": fraction,
        "max_num_batched_tokens": tokens,
        "kv_dtype": kv_dtype,
    }
    try:
        plan = plan_kv_pages(model, gpu, **options)
    except MemoryPlanError:
        return
    assert plan.usable_bytes == int(gpu.memory_bytes * fraction)
    used = plan.weight_bytes + plan.reserve_bytes + plan.num_pages * plan.page_bytes
    assert used <= plan.usable_bytes < used + plan.page_bytes
    assert plan.page_bytes == page_size * model.kv_bytes_per_token(kv_dtype, tp)
    assert plan.weight_bytes == model.weight_bytes(None, tp)
    assert plan.num_tokens == plan.num_pages * page_size


def test_it_agrees_with_what_vllm_found_on_an_h100():
    """On an 80 GB H100 vLLM's profiling of Llama-3-8B left 53.29 GiB for KV (vLLM PR #10511)."""
    plan = plan_kv_pages(LLAMA, load_hardware_spec("h100"), memory_fraction=0.9)
    assert plan.usable_bytes / GIB == pytest.approx(71.29, abs=0.05)
    assert plan.weight_bytes / GIB == pytest.approx(14.96, abs=0.01)
    assert plan.kv_bytes / GIB == pytest.approx(53.29, rel=0.02)


def test_activations_of_a_token():
    """Residual, its norm, and the wider of attention and MLP; experts count once per visit."""
    assert activation_bytes_per_token(LLAMA) == 2 * (2 * 4096 + 3 * 14336)
    visits = 3 * 256 + 8 * (3 * 256 + 7168)  # one shared and eight routed experts, an eighth each
    deepseek = load_model_spec("DeepSeek-V3")
    assert activation_bytes_per_token(deepseek, 8) == 2 * (2 * 7168 + visits)
    mixtral = load_model_spec("Mixtral-8x7B")
    assert activation_bytes_per_token(mixtral) == 2 * (2 * 4096 + 2 * (3 * 14336 + 4096))


def test_less_room_means_fewer_pages():
    """Pages fall with a larger budget of tokens or requests and rise with memory and smaller KV."""
    assert pages(max_num_batched_tokens=65_536) < pages()
    assert pages(max_running_requests=4096) < pages()
    assert pages(num_speculative_tokens=7) < pages()
    assert pages(memory_fraction=0.8) < pages()
    assert pages(gpu=load_hardware_spec("h100")) < pages()
    assert pages(kv_dtype="fp8") == pytest.approx(2 * pages(), abs=1)
    assert pages(weight_dtype="fp8") > pages()
    assert pages(tensor_parallel_size=2) > 2 * pages()


def test_the_lines_show_the_sum():
    """The printed summands are aligned and add up to the printed remainder."""
    plan = plan_kv_pages(LLAMA, H200)
    title, *rows, last = plan.lines()
    assert "Llama-3.1-8B" in title
    assert "H200" in title
    assert len({len(row) for row in rows}) == 1
    shown = [float(re.search(r"(-?[\d.]+) GiB$", row).group(1)) for row in rows]
    memory, usable, *spent, remainder = shown
    assert memory * 0.9 == pytest.approx(usable, abs=0.01)
    assert usable + sum(spent) == pytest.approx(remainder, abs=0.03)
    assert f"{plan.num_pages:,} pages = {plan.num_tokens:,} tokens" in last


def short(model_name: str, gpu_name: str, **options) -> str:
    """The error message of a plan that does not fit."""
    with pytest.raises(MemoryPlanError) as caught:
        plan_kv_pages(load_model_spec(model_name), load_hardware_spec(gpu_name), **options)
    return str(caught.value)


def test_an_impossible_plan_shows_the_arithmetic_and_the_fixes():
    """70 B in bf16 does not fit one H200: the message shows every summand and two ways out."""
    message = short("Llama-3.1-70B", "h200")
    assert message.startswith("Llama-3.1-70B does not fit: 9.35 GiB short of one KV page")
    assert "- weights, bf16" in message
    assert "fix: tensor_parallel_size 2" in message
    assert "fix: a larger GPU: b200" in message
    assert "max_num_batched_tokens <=" not in message


def test_every_proposed_fix_works():
    """Each fix by itself leaves room for a page; a token more than proposed does not."""
    model, gpu = load_model_spec("Llama-3.1-8B"), load_hardware_spec("l4")
    message = short("Llama-3.1-8B", "l4", memory_fraction=0.98, max_num_batched_tokens=65_536)
    tokens = int(
        re.search(r"max_num_batched_tokens <= ([\d,]+)", message).group(1).replace(",", "")
    )
    assert pages(model, gpu, memory_fraction=0.98, max_num_batched_tokens=tokens) >= 1
    assert pages(model, gpu, memory_fraction=0.98, max_num_batched_tokens=tokens + 1) == 0
    tp = int(re.search(r"tensor_parallel_size (\d+)\n", message).group(1))
    wide = {"memory_fraction": 0.98, "max_num_batched_tokens": 65_536}
    assert pages(model, gpu, tensor_parallel_size=tp, **wide) >= 1
    larger = re.search(r"a larger GPU: (.*)", message).group(1).split(", ")
    assert larger == ["a100", "h100", "h200", "b200"]
    assert all(pages(model, load_hardware_spec(name), **wide) for name in larger)


def test_no_fix_is_made_up():
    """Where no single change is enough, the message says so."""
    assert "fix: no single change of these is enough" in short("DeepSeek-V3", "l4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_fraction": 0.0}, r"memory_fraction = 0 must be in \(0, 1\]"),
        ({"memory_fraction": 1.2}, r"memory_fraction = 1.2 must be in \(0, 1\]"),
        ({"page_size": 0}, "page_size, .* must be at least 1"),
    ],
)
def test_impossible_options_are_errors(options, message):
    """Fractions outside (0, 1] and empty pages are refused."""
    with pytest.raises(MemoryPlanError, match=message):
        plan_kv_pages(LLAMA, H200, **options)


def test_a_size_that_does_not_divide_is_its_own_error():
    """Tensor parallelism that cannot be is not a question of memory."""
    with pytest.raises(TensorParallelError):
        plan_kv_pages(LLAMA, H200, tensor_parallel_size=3)
