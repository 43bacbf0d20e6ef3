"""What the configurations of Qwen-Image's parts may say: every setting that counts, in bounds.

As :mod:`fresco_trt.models.settings` says: a library is given the settings that are listed
here and no others, and what else a configuration holds is ignored on purpose.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fresco_trt.models.settings import Epsilon, Levels, Settings, Whole, refuse

_Token = Annotated[int, Field(ge=0)]


class _Rope(Settings):
    """How positions turn queries and keys; older files call it ``rope_scaling``."""

    made = "Qwen2_5_VLForConditionalGeneration"

    rope_theta: Annotated[float, Field(gt=0)] = 1_000_000.0
    rope_type: Literal["default", "mrope"] = "default"
    mrope_section: Annotated[list[Whole], Field(min_length=3, max_length=3)]

    def given(self) -> dict[str, Any]:
        return {**self.model_dump(), "rope_type": "default"}


class _Text(Settings):
    """Of the language model."""

    made = "Qwen2_5_VLForConditionalGeneration"

    vocab_size: Whole
    hidden_size: Whole
    intermediate_size: Whole
    num_hidden_layers: Whole
    num_attention_heads: Whole
    num_key_value_heads: Whole
    hidden_act: Literal["silu"]
    max_position_embeddings: Whole
    rms_norm_eps: Epsilon
    use_sliding_window: Literal[False] = False
    rope_parameters: _Rope | None = None
    rope_scaling: _Rope | None = None
    rope_theta: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        heads, groups, width = (
            self.num_attention_heads,
            self.num_key_value_heads,
            self.hidden_size,
        )
        if width % heads or heads % groups:
            refuse(
                f"num_attention_heads={heads}, num_key_value_heads={groups}",
                f"the second a divisor of the first, which is one of hidden_size={width}",
            )
        rope = self.rope_parameters or self.rope_scaling
        if rope is None or 2 * sum(rope.mrope_section) != width // heads:
            refuse("rope_parameters", "an mrope_section of half a head's width in all")
        return self

    def given(self) -> dict[str, Any]:
        rope = self.rope_parameters or self.rope_scaling
        found: dict[str, Any] = {} if rope is None else rope.given()
        if self.rope_theta is not None:
            found["rope_theta"] = self.rope_theta
        others = ("rope_parameters", "rope_scaling", "rope_theta")
        plain = self.model_dump(exclude=set(others))
        return {**plain, "rope_parameters": found}


class _Vision(Settings):
    """Of what sees pictures."""

    made = "Qwen2_5_VLForConditionalGeneration"

    depth: Whole
    hidden_size: Whole
    hidden_act: Literal["silu"] = "silu"
    intermediate_size: Whole
    num_heads: Whole
    in_channels: Literal[3] = 3
    patch_size: Whole
    spatial_merge_size: Whole
    temporal_patch_size: Whole
    tokens_per_second: Whole
    window_size: Whole
    out_hidden_size: Whole
    fullatt_block_indexes: Annotated[list[_Token], Field(max_length=1024)]

    @model_validator(mode="after")
    def _check_patches(self) -> Self:
        if self.hidden_size % self.num_heads:
            refuse(f"num_heads={self.num_heads}", f"a divisor of hidden_size={self.hidden_size}")
        if self.window_size < self.patch_size * self.spatial_merge_size:
            refuse(f"window_size={self.window_size}", "at least one merged patch")
        return self


class EncoderSettings(Settings):
    """Of the prompt encoder, which reads words and sees pictures."""

    made = "Qwen2_5_VLForConditionalGeneration"

    model_type: Literal["qwen2_5_vl"] = Field("qwen2_5_vl", exclude=True)
    text_config: _Text
    vision_config: _Vision
    image_token_id: _Token
    video_token_id: _Token
    vision_start_token_id: _Token
    vision_end_token_id: _Token
    tie_word_embeddings: bool = False

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, told: Any) -> Any:
        """Older files have the language model's settings at the top."""
        if isinstance(told, dict) and "text_config" not in told:
            return {**told, "text_config": told}
        return told

    def given(self) -> dict[str, Any]:
        """What the library builds the encoder from."""
        plain = self.model_dump(exclude={"text_config", "vision_config"})
        return {
            **plain,
            "text_config": self.text_config.given(),
            "vision_config": self.vision_config.given(),
        }


class CodecSettings(Settings):
    """Of the decoder, and what turns its latents into the transformer's."""

    made = "AutoencoderKLQwenImage"

    class_name: Literal["AutoencoderKLQwenImage"] = Field(
        "AutoencoderKLQwenImage", alias="_class_name", exclude=True
    )
    base_dim: Whole
    z_dim: Whole
    dim_mult: Levels
    num_res_blocks: Whole
    attn_scales: Annotated[list[float], Field(max_length=16)] = Field(default_factory=list)
    temperal_downsample: Annotated[list[bool], Field(min_length=1, max_length=16)]
    dropout: Annotated[float, Field(ge=0, le=0)] = 0.0
    input_channels: Literal[3] = 3
    latents_mean: Annotated[list[float], Field(max_length=65_536)]
    latents_std: Annotated[list[Annotated[float, Field(gt=0)]], Field(max_length=65_536)]

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            refuse(f"{len(self.temperal_downsample)} temperal_downsample", "one a level but one")
        for name in ("latents_mean", "latents_std"):
            count = len(getattr(self, name))
            if count != self.z_dim:
                refuse(f"{count} {name}", f"{self.z_dim}, as z_dim says")
        return self
