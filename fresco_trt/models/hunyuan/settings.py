"""What the configurations of HunyuanVideo's parts may say: every setting that counts, in bounds.

By the rules of :mod:`fresco_trt.models.settings`. The CLIP is one as FLUX has.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fresco_trt.models.settings import Epsilon, Levels, Settings, Whole, refuse

_Theta = Annotated[float, Field(gt=0)]


class _Rope(Settings):
    """How positions turn queries and keys."""

    made = "LlamaModel"

    rope_theta: _Theta = 500_000.0
    rope_type: Literal["default"] = "default"


class LlamaSettings(Settings):
    """Of the encoder of a prompt's words. The third of its states from the end is the text."""

    made = "LlamaModel"

    model_type: Literal["llama"] = Field("llama", exclude=True)
    vocab_size: Whole
    hidden_size: Whole
    intermediate_size: Whole
    num_hidden_layers: Annotated[int, Field(ge=2)]
    num_attention_heads: Whole
    num_key_value_heads: Whole
    hidden_act: Literal["silu"]
    max_position_embeddings: Whole
    rms_norm_eps: Epsilon
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_parameters: _Rope | None = None
    rope_scaling: None = Field(None, exclude=True)
    rope_theta: _Theta | None = None

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % heads or heads % groups:
            refuse(
                f"num_attention_heads={heads}, num_key_value_heads={groups}",
                f"the second a divisor of the first, which is one of {self.hidden_size}",
            )
        if self.rope_parameters is None and self.rope_theta is None:
            refuse("no rope_parameters", "a rope_theta in them, or by itself")
        return self

    def given(self) -> dict[str, Any]:
        rope = _Rope() if self.rope_parameters is None else self.rope_parameters
        found = rope.given()
        if self.rope_theta is not None:
            found["rope_theta"] = self.rope_theta
        plain = self.model_dump(exclude={"rope_parameters", "rope_theta"})
        return {**plain, "rope_parameters": found}


class CodecSettings(Settings):
    """Of the decoder, and what turns its latents into the transformer's."""

    made = "AutoencoderKLHunyuanVideo"

    class_name: Literal["AutoencoderKLHunyuanVideo"] = Field(
        "AutoencoderKLHunyuanVideo", alias="_class_name", exclude=True
    )
    in_channels: Literal[3]
    out_channels: Literal[3]
    latent_channels: Whole
    block_out_channels: Levels
    down_block_types: list[Literal["HunyuanVideoDownBlock3D"]]
    up_block_types: list[Literal["HunyuanVideoUpBlock3D"]]
    layers_per_block: Whole
    norm_num_groups: Whole
    act_fn: Literal["silu"]
    scaling_factor: Annotated[float, Field(ge=1e-3, le=1e3)]
    spatial_compression_ratio: Literal[2, 4, 8, 16]
    temporal_compression_ratio: Literal[4]
    mid_block_add_attention: bool = True

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        levels = self.block_out_channels
        for name in ("down_block_types", "up_block_types"):
            count = len(getattr(self, name))
            if count != len(levels):
                refuse(f"{count} {name}", f"{len(levels)}, as block_out_channels has")
        groups = self.norm_num_groups
        if any(width % groups for width in levels):
            refuse(f"norm_num_groups={groups}", f"a divisor of each of {levels}")
        return self
