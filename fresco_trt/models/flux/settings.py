"""What the configurations of FLUX's encoders and decoder may say: every setting that counts, in
bounds.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fresco_trt.models.settings import Epsilon, Levels, Numbers, Settings, Whole, refuse


class _Encoder(Settings):
    """What transformers would let a configuration say of any model's ``forward``."""

    return_dict: Literal[True] = Field(True, exclude=True)
    use_return_dict: Literal[True] = Field(True, exclude=True)
    output_attentions: Literal[False] = Field(False, exclude=True)
    output_hidden_states: Literal[False] = Field(False, exclude=True)
    torchscript: Literal[False] = Field(False, exclude=True)
    is_decoder: Literal[False] = Field(False, exclude=True)
    add_cross_attention: Literal[False] = Field(False, exclude=True)
    chunk_size_feed_forward: Literal[0] = Field(0, exclude=True)
    per_layer_config: None = Field(None, exclude=True)


class ClipSettings(_Encoder):
    """Of the encoder of a prompt as a whole."""

    made = "CLIPTextModel"

    model_type: Literal["clip_text_model", "clip"] = Field("clip_text_model", exclude=True)
    vocab_size: Whole
    hidden_size: Whole
    intermediate_size: Whole
    num_hidden_layers: Whole
    num_attention_heads: Whole
    max_position_embeddings: Annotated[int, Field(ge=4)]
    hidden_act: Literal["quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"]
    layer_norm_eps: Epsilon
    eos_token_id: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        heads, width = self.num_attention_heads, self.hidden_size
        if width % heads:
            refuse(f"num_attention_heads={heads}", f"a divisor of hidden_size={width}")
        if self.eos_token_id >= self.vocab_size:
            refuse(f"eos_token_id={self.eos_token_id}", f"one of {self.vocab_size} tokens from 0")
        return self


class T5Settings(_Encoder):
    """Of the encoder of a prompt's words."""

    made = "T5EncoderModel"

    model_type: Literal["t5"] = Field("t5", exclude=True)
    vocab_size: Whole
    d_model: Whole
    d_kv: Whole
    d_ff: Whole
    num_layers: Whole
    num_heads: Whole
    relative_attention_num_buckets: Annotated[int, Field(ge=4)]
    relative_attention_max_distance: Whole = 128  # older files of T5 do not say so
    feed_forward_proj: Literal["relu", "gelu", "gelu_new", "gated-gelu", "gated-silu", "gated-relu"]
    layer_norm_epsilon: Epsilon

    @model_validator(mode="after")
    def _check_distance(self) -> Self:
        # Half of the buckets look to either side, and half of these count single tokens.
        exact = self.relative_attention_num_buckets // 4
        if self.relative_attention_max_distance <= exact:
            given = f"relative_attention_max_distance={self.relative_attention_max_distance}"
            refuse(given, f"over {exact}, the distances that have a bucket each")
        return self


class CodecSettings(Settings):
    """Of the decoder, and what turns its latents into the transformer's."""

    made = "AutoencoderKL"

    class_name: Literal["AutoencoderKL"] = Field("AutoencoderKL", alias="_class_name", exclude=True)
    in_channels: Literal[3]
    out_channels: Literal[3]
    latent_channels: Whole
    block_out_channels: Levels
    down_block_types: list[Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]]
    up_block_types: list[Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]]
    layers_per_block: Whole
    norm_num_groups: Whole
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"]
    scaling_factor: Annotated[float, Field(ge=1e-3, le=1e3)]
    shift_factor: Annotated[float, Field(ge=-1e3, le=1e3)]
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    force_upcast: bool = True
    sample_size: Whole | Annotated[list[Whole], Field(min_length=1, max_length=2)] = 32
    latents_mean: Numbers | None = None
    latents_std: Numbers | None = None

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
