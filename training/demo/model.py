"""The next demo model: FLUX's architecture with 11 million weights, for captions of open scenes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from training.model import DemoModel, begin_at_zero
from training.scenes.captions import vocabulary
from training.text import word_tokenizer

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextModel, T5EncoderModel

HEAD_WIDTH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """Of the transformer: double- and single-stream blocks, heads of 32; and of its encoders: how
    wide, and how many layers the pooled and the sequence encoder have.
    """

    double: int = 2
    single: int = 6
    heads: int = 8
    text: int = 128
    layers: tuple[int, int] = (2, 3)


CLIP_TOKENS = 64
"""Length of the pooled encoder's input: the longest captions have 57 tokens with both marks."""

WORDS: tuple[str, ...] = (*vocabulary(), ",")


class SceneModel(DemoModel):
    """Captions of open scenes and noisy latents in, velocity out; the guidance is an input."""

    def __init__(self, dimensions: Dimensions | None = None, seed: int = 0) -> None:
        nn.Module.__init__(self)
        torch.manual_seed(seed)
        known = dimensions or Dimensions()
        self.transformer = _transformer(known)
        self.text_encoder, self.text_encoder_2 = _encoders(known)
        self.tokenizer = word_tokenizer("<|startoftext|> $A <|endoftext|>", CLIP_TOKENS, WORDS)
        self.tokenizer_2 = word_tokenizer("$A <|endoftext|>", 512, WORDS)
        self._known = {}


def _transformer(known: Dimensions) -> FluxTransformer2DModel:
    from diffusers import FluxTransformer2DModel

    model: FluxTransformer2DModel = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=known.double,
        num_single_layers=known.single,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=known.heads,
        joint_attention_dim=known.text,
        pooled_projection_dim=known.text,
        guidance_embeds=True,
        axes_dims_rope=(4, 14, 14),
    )
    begin_at_zero(model)
    # Until other scales than 1 are trained, the guidance says nothing.
    last = model.time_text_embed.guidance_embedder.linear_2
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return model


def _encoders(known: Dimensions) -> tuple[CLIPTextModel, T5EncoderModel]:
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    words, (pooled, sequence) = len(WORDS) + 4, known.layers
    clip = CLIPTextConfig(
        vocab_size=words,
        hidden_size=known.text,
        intermediate_size=2 * known.text,
        num_hidden_layers=pooled,
        num_attention_heads=4,
        max_position_embeddings=CLIP_TOKENS,
        projection_dim=known.text,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    t5 = T5Config(
        vocab_size=words,
        d_model=known.text,
        d_kv=known.text // 4,
        d_ff=2 * known.text,
        num_layers=sequence,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=3,
    )
    return CLIPTextModel(clip), T5EncoderModel(t5)
