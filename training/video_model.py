"""The video demo's transformer and its text encoders: HunyuanVideo's architecture, made small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fresco_trt.bench.scenes.clips import WORDS
from training.text import vocabulary, word_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import HunyuanVideoTransformer3DModel
    from transformers import CLIPTextModel, PreTrainedTokenizerFast
    from transformers.models.llama.modeling_llama import LlamaModel

CHANNELS = 16
"""Channels of the latents, HunyuanVideo's own number."""

HEADS, HEAD_WIDTH, ROPE_WIDTHS = 5, 32, (8, 12, 12)

TEXT_WIDTH = 64

CLIP_TOKENS = 77
"""What diffusers pads the pooled encoder's prompt to."""

SKIPPED = 2
"""Last layers of the sequence encoder that diffusers leaves out; here they are never trained."""

MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
"""Marks of the template that diffusers puts a prompt into."""


def new_transformer() -> HunyuanVideoTransformer3DModel:
    """An untrained transformer; modulations, the output projection and what the guidance scale says
    start at zero.
    """
    from diffusers import HunyuanVideoTransformer3DModel

    model: HunyuanVideoTransformer3DModel = HunyuanVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        num_layers=1,
        num_single_layers=4,
        num_refiner_layers=1,
        text_embed_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        rope_axes_dim=ROPE_WIDTHS,
    )
    for name, module in model.named_modules():
        is_modulation = name.endswith(".linear") and "norm" in name
        is_guidance = name == "time_text_embed.guidance_embedder.linear_2"
        if isinstance(module, nn.Linear) and (is_modulation or is_guidance or name == "proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def new_tokenizers() -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """The sequence encoder's tokenizer and the pooled encoder's.

    diffusers wraps a prompt into a template and crops as many tokens as LLaMA's tokenizer makes of
    what stands before the prompt. Here that text is shorter, so start marks make up for the rest.
    """
    template, cropped = prompt_template()
    before = len(_llama_tokenizer(0)(template.split("{}")[0]).input_ids)
    clip = word_tokenizer("<|startoftext|> $A <|endoftext|>", CLIP_TOKENS, _words())
    return _llama_tokenizer(cropped - before), clip


def _llama_tokenizer(starts: int) -> PreTrainedTokenizerFast:
    return word_tokenizer("<|startoftext|> " * starts + "$A", 512, _words(), MARKS)


def prompt_template() -> tuple[str, int]:
    """diffusers' template for prompts, and how many tokens it crops before the prompt."""
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

    return str(DEFAULT_PROMPT_TEMPLATE["template"]), int(DEFAULT_PROMPT_TEMPLATE["crop_start"])


def _words() -> list[str]:
    return [*vocabulary(), *WORDS]


def new_encoders(seed: int) -> tuple[LlamaModel, CLIPTextModel]:
    """Untrained encoders of 2 layers each that count; the second gives the pooled vector."""
    from transformers import CLIPTextConfig, CLIPTextModel
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaModel

    torch.manual_seed(seed)
    known = len(_words()) + 4
    shape: dict[str, Any] = {
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_attention_heads": 4,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    sequence = LlamaModel(
        LlamaConfig(
            vocab_size=known + len(MARKS),
            num_hidden_layers=2 + SKIPPED,
            # Of no matter, for positions turn; loaders take none over the widest tensor.
            max_position_embeddings=2 * TEXT_WIDTH,
            **shape,
        )
    )
    for unused in (*sequence.layers[-SKIPPED:], sequence.norm):
        unused.requires_grad_(False)
    clip = CLIPTextConfig(
        vocab_size=known,
        num_hidden_layers=2,
        max_position_embeddings=CLIP_TOKENS,
        projection_dim=TEXT_WIDTH,
        **shape,
    )
    return sequence, CLIPTextModel(clip)


class VideoModel(nn.Module):
    """Captions and noisy latents in, velocity out: encoders and transformer as one unit."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.transformer = new_transformer()
        self.text_encoder, self.text_encoder_2 = new_encoders(seed)
        self.tokenizer, self.tokenizer_2 = new_tokenizers()

    @property
    def device(self) -> torch.device:
        """Where the transformer's weights are."""
        where: torch.device = self.transformer.proj_out.weight.device
        return where

    def encode(self, captions: Sequence[str], length: int) -> tuple[torch.Tensor, ...]:
        """Text features as diffusers' pipeline has them for ``length`` tokens: the sequence
        [B,length,64], its mask [B,length] and the pooled vector [B,64].
        """
        template, cropped = prompt_template()
        told = self._tokens(
            self.tokenizer, [template.format(c) for c in captions], cropped + length
        )
        pooled = self._tokens(self.tokenizer_2, captions, CLIP_TOKENS)
        words = self.text_encoder(**told, output_hidden_states=True).hidden_states[-SKIPPED - 1]
        vector = self.text_encoder_2(pooled["input_ids"]).pooler_output
        return words[:, cropped:], told["attention_mask"][:, cropped:], vector

    def _tokens(self, tokenizer: Any, texts: Sequence[str], length: int) -> dict[str, torch.Tensor]:
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        found = tokenizer(list(texts), max_length=length, return_token_type_ids=False, **options)
        return dict(found.to(self.device))

    def forward(
        self,
        latents: torch.Tensor,
        sigma: torch.Tensor,
        text: tuple[torch.Tensor, ...],
        guidance: torch.Tensor,
    ) -> torch.Tensor:
        """Velocity [B,16,F,H,W] at noise level ``sigma`` [B] of latents [B,16,F,H,W]."""
        words, mask, pooled = text
        velocity: torch.Tensor = self.transformer(
            hidden_states=latents,
            timestep=1000 * sigma,
            encoder_hidden_states=words,
            encoder_attention_mask=mask,
            pooled_projections=pooled,
            guidance=1000 * guidance,
            return_dict=False,
        )[0]
        return velocity
