"""The diffusion transformer computes what diffusers' own does, in every dtype."""

from __future__ import annotations

import pytest
import torch

from engine.models.dit import (
    SPECS,
    Dit,
    DitBlock,
    DitSpec,
    DitWeights,
    Linear,
    converted,
    random_weights,
)

SPEC = DitSpec(hidden_size=24, num_layers=3, num_heads=2, input_size=12, in_channels=4,
               num_classes=7)  # fmt: skip


def theirs(spec: DitSpec) -> torch.nn.Module:
    """diffusers' model of the same shape, all of its weights random, in float64."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(3)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=spec.num_heads,
        attention_head_dim=spec.hidden_size // spec.num_heads,
        in_channels=spec.in_channels,
        out_channels=spec.in_channels,
        num_layers=spec.num_layers,
        sample_size=spec.input_size,
        patch_size=spec.patch_size,
        num_embeds_ada_norm=spec.num_classes,
        norm_eps=1e-6,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
        # There each block has an embedding of its own; checkpoints hold the same in all of them.
        shared = model.transformer_blocks[0].norm1.emb.state_dict()
        for block in model.transformer_blocks:
            block.norm1.emb.load_state_dict(shared)
    return model.double()


def ours(spec: DitSpec, model: torch.nn.Module) -> Dit:
    """Our model with their weights."""

    def linear(*modules: torch.nn.Module) -> Linear:
        weights = [module.weight.detach().flatten(1) for module in modules]
        return Linear(torch.cat(weights), torch.cat([module.bias.detach() for module in modules]))

    embedding = model.transformer_blocks[0].norm1.emb
    blocks = tuple(
        DitBlock(
            modulation=linear(block.norm1.linear),
            qkv=linear(block.attn1.to_q, block.attn1.to_k, block.attn1.to_v),
            out=linear(block.attn1.to_out[0]),
            up=linear(block.ff.net[0].proj),
            down=linear(block.ff.net[2]),
        )
        for block in model.transformer_blocks
    )
    table = embedding.class_embedder.embedding_table.weight.detach()
    weights = DitWeights(
        patch=linear(model.pos_embed.proj),
        time_in=linear(embedding.timestep_embedder.linear_1),
        time_out=linear(embedding.timestep_embedder.linear_2),
        classes=table,
        blocks=blocks,
        final_modulation=linear(model.proj_out_1),
        final=linear(model.proj_out_2),
    )
    return Dit(spec, weights)


@pytest.mark.parametrize("time", [0.0, 1.0, 500.0, 999.0])
def test_it_computes_what_diffusers_model_does(time: float) -> None:
    """With the same weights both give the same noise, up to float64's and float32's rounding."""
    reference = theirs(SPEC)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 4, 12, 12, generator=generator, dtype=torch.float64)
    classes = torch.tensor([0, 3, 6])
    times = torch.full((3,), time, dtype=torch.float64)
    with torch.no_grad():
        wanted = reference(latents, timestep=times, class_labels=classes).sample
        found = ours(SPEC, reference).forward(latents, times, classes)
    # Theirs are float32 sines and cosines, of angles up to 999.
    assert torch.linalg.norm(found - wanted) / torch.linalg.norm(wanted) < 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_lower_precision_stays_close_to_float64(dtype: torch.dtype, tolerance: float) -> None:
    """The same weights in a smaller dtype give the same noise up to that dtype's rounding."""
    weights = random_weights(SPEC, "cpu", dtype, seed=5)
    exact = Dit(SPEC, converted(weights, torch.float64))
    latents = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(2)).to(dtype)
    times, classes = torch.tensor([17.0, 803.0]), torch.tensor([2, 5])
    wanted = exact.forward(latents.double(), times, classes)
    found = Dit(SPEC, weights).forward(latents, times, classes)
    assert torch.linalg.norm(found.double() - wanted) / torch.linalg.norm(wanted) < tolerance


def test_every_input_matters() -> None:
    """Another pixel, time step or class gives another result, and images do not see each other."""
    model = Dit(SPEC, random_weights(SPEC, "cpu", torch.float64))
    latents = torch.randn(2, 4, 12, 12, dtype=torch.float64)
    times, classes = torch.tensor([5.0, 9.0]), torch.tensor([1, 2])
    base = model.forward(latents, times, classes)
    moved = latents.clone()
    moved[0, 3, 11, 11] += 1
    for changed in (
        model.forward(moved, times, classes),
        model.forward(latents, torch.tensor([6.0, 9.0]), classes),
        model.forward(latents, times, torch.tensor([4, 2])),
    ):
        assert not torch.allclose(changed[0], base[0])
        assert torch.allclose(changed[1], base[1], atol=1e-12)


def test_published_shapes_count_as_published() -> None:
    """DiT-S/2 and DiT-XL/2 have the multiply-adds of the paper's table 4: 6.06 and 118.64 G."""
    assert SPECS["dit-s"].flops_per_image() / 2e9 == pytest.approx(6.06, rel=0.01)
    assert SPECS["dit-xl"].flops_per_image() / 2e9 == pytest.approx(118.64, rel=0.01)


def test_shapes_that_do_not_divide_are_refused() -> None:
    """A hidden size that heads do not divide is an error that names the spec."""
    with pytest.raises(ValueError, match="hidden_size=30"):
        DitSpec(hidden_size=30, num_layers=1, num_heads=4)
