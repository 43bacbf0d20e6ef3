"""Transformers of diffusers as engines, each of one block and random weights, and the operators in
them that torch's exporter or the engine library had no answer to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fresco_trt.compile import counters
from tests.compile.compiling import compiled, since


def qwen(library: Any) -> tuple[Any, dict[str, Any]]:
    """Rotary positions are complex numbers, which are split, indexed and expanded."""
    model = library.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=8,
        axes_dims_rope=(8, 4, 4),
    )
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    return model, {
        "hidden_states": torch.randn(1, 4, 16),
        "encoder_hidden_states": torch.randn(1, 5, 8),
        "encoder_hidden_states_mask": mask,
        "timestep": torch.tensor([0.5]),
        "img_shapes": [(1, 2, 2)],
    }


def hunyuan(library: Any) -> tuple[Any, dict[str, Any]]:
    """The mask of the text is made by choosing between booleans."""
    model = library.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=1,
        attention_head_dim=10,
        num_layers=0,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=False,
        text_embed_dim=8,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    return model, {
        "hidden_states": torch.randn(1, 4, 1, 2, 2),
        "timestep": torch.tensor([5]),
        "encoder_hidden_states": torch.randn(1, 5, 8),
        "pooled_projections": torch.randn(1, 8),
        "encoder_attention_mask": torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]]),
    }


def pixart(library: Any) -> tuple[Any, dict[str, Any]]:
    """An axis of more than one element is squeezed."""
    model = library.PixArtTransformer2DModel(
        sample_size=4,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=1,
        in_channels=4,
        cross_attention_dim=8,
        out_channels=8,
        num_embeds_ada_norm=8,
        caption_channels=8,
        use_additional_conditions=False,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "timestep": torch.tensor([3, 3]),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "encoder_attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "added_cond_kwargs": {"aspect_ratio": None, "resolution": None},
    }


def cogvideox(library: Any) -> tuple[Any, dict[str, Any]]:
    """Positions of another size than the model's are written through ``.data``, and repeated."""
    model = library.CogVideoXTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=8,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        patch_size=2,
        max_text_seq_length=4,
    )
    return model, {
        "hidden_states": torch.randn(1, 2, 4, 4, 4),
        "encoder_hidden_states": torch.randn(1, 4, 8),
        "timestep": torch.tensor([3]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", [qwen, hunyuan, pixart, cogvideox])
def test_a_transformer_of_another_family_gets_an_engine(
    cache: Path, family: Callable[[Any], tuple[Any, dict[str, Any]]]
) -> None:
    import diffusers

    model, inputs = family(diffusers)
    model.eval().requires_grad_(False)
    before = counters()
    (found,) = compiled(model, cache, strict=True)(**inputs, return_dict=False)
    (eager,) = model(**inputs, return_dict=False)
    assert (found - eager).abs().max() < 2e-6 * eager.abs().max()
    assert since(before) == (1, 0, 0)


# --- the operators ------------------------------------------------------------------------------


def complex_numbers(x: Tensor, turns: Tensor) -> Tensor:
    """``x`` is [2,3,4], ``turns`` [3,2] of complex64."""
    c = torch.view_as_complex(x.reshape(2, 3, 2, 2))
    first, second = c.split([1, 2], dim=1)
    left, right = torch.cat([second, first], -2).chunk(2, dim=-1)
    c = torch.cat([left, right * turns[:, :1], c.split(1, dim=-1)[0]], -1).unsqueeze(-2)
    c = (
        c[:, torch.tensor([2, 0, 1])].expand(-1, -1, 2, -1)
        * turns[:1].repeat(3, 1)[None, :, :, None]
    )
    return torch.view_as_real(c[:, 1] * 0.5)


def shapes_and_booleans(x: Tensor) -> Tensor:
    spread = torch.zeros(2, 3, 4)
    spread[:, 1:] = x[0, 0]
    spread.data[:1].copy_(x[1, 0])
    rows = torch.ones(1, 3, 4).repeat_interleave(2, dim=0) * x.squeeze(1)
    counts = torch.tensor([1, 0, 2])
    x = spread + rows + x.repeat_interleave(counts, dim=1, output_size=3)
    small, large = x < 1, x > 0
    chosen = torch.where(large, ~large, small).masked_fill(x > 2, False)
    short = torch.where(
        large, torch.tensor(2, dtype=torch.int16), torch.tensor(3, dtype=torch.int16)
    )
    return (chosen + (small * large)) * x + short


def attention(x: Tensor) -> Tensor:
    attend = torch.nn.functional.scaled_dot_product_attention
    keys = torch.tensor([[True, False, True], [False, False, False]])[:, None]
    bias = torch.where(keys, 0.0, -math.inf)
    q = x[None, None]
    return attend(x, x, x, keys) + attend(x[0], x[0], x[0]) + attend(q, q, q, bias)[0, 0]


OPERATORS: list[Callable[..., Tensor]] = [complex_numbers, shapes_and_booleans, attention]


@pytest.mark.parametrize("function", OPERATORS)
def test_what_the_exporter_lacks_or_gets_wrong_is_said_otherwise(
    cache: Path, function: Callable[..., Tensor]
) -> None:
    turns = torch.polar(torch.ones(3, 2), torch.randn(3, 2)).conj()
    inputs = [torch.randn(2, 3, 4), *([turns] if function is complex_numbers else [])]
    before = counters()
    found = compiled(function, cache, strict=True)(*inputs)
    torch.testing.assert_close(found, function(*inputs))
    assert since(before) == (1, 0, 0)
