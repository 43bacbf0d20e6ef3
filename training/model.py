"""The demo transformer, trained with its text encoders: FLUX.1's architecture, made small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fresco_trt.models.flux.tokens import pack, position_ids, unpack
from training.text import new_encoders, new_tokenizers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import FluxTransformer2DModel

HIDDEN_HEADS = 6
HEAD_WIDTH = 32

REMEMBERED = 100_000
"""Captions whose token ids are kept, for each length: open scenes have new ones without end."""


def new_transformer(*, guidance: bool) -> FluxTransformer2DModel:
    """An untrained transformer; modulations and the output projection start at zero."""
    from diffusers import FluxTransformer2DModel

    model: FluxTransformer2DModel = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HIDDEN_HEADS,
        joint_attention_dim=128,
        pooled_projection_dim=128,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 14, 14),
    )
    begin_at_zero(model)
    return model


def begin_at_zero(model: nn.Module) -> None:
    """Let a transformer's modulations and its output projection start at zero."""
    for name, module in model.named_modules():
        is_modulation = name.endswith(".linear") and "norm" in name
        if isinstance(module, nn.Linear) and (is_modulation or name == "proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


class DemoModel(nn.Module):
    """Captions and noisy latents in, velocity out: encoders and transformer as one unit."""

    def __init__(self, *, guidance: bool, seed: int = 0, words: Sequence[str] = ()) -> None:
        """``words`` are those that it knows beside the words of captions."""
        super().__init__()
        torch.manual_seed(seed)
        self.transformer = new_transformer(guidance=guidance)
        self.text_encoder, self.text_encoder_2 = new_encoders(seed, len(words))
        self.tokenizer, self.tokenizer_2 = new_tokenizers(words)
        self._known: dict[tuple[int, int], dict[str, torch.Tensor]] = {}

    def encode(self, captions: Sequence[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled [B,128] and sequence [B,length,128] text features, padded and unmasked as FLUX."""
        clip = self._ids(self.tokenizer, captions, self.tokenizer.model_max_length)
        words = self._ids(self.tokenizer_2, captions, length)
        pooled = self.text_encoder(clip.to(self.device)).pooler_output
        return pooled, self.text_encoder_2(words.to(self.device))[0]

    def _ids(self, tokenizer: Any, captions: Sequence[str], length: int) -> torch.Tensor:
        """Token ids [B,length]; those of captions that come again are remembered."""
        known = self._known.setdefault((id(tokenizer), length), {})
        if len(known) > REMEMBERED:
            known.clear()
        new = [caption for caption in dict.fromkeys(captions) if caption not in known]
        if new:
            options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
            ids = tokenizer(new, max_length=length, **options).input_ids
            known.update(zip(new, ids.unbind(), strict=True))
        return torch.stack([known[caption] for caption in captions])

    @property
    def device(self) -> torch.device:
        """Where the transformer's weights are."""
        where: torch.device = self.transformer.proj_out.weight.device
        return where

    def forward(
        self,
        latents: torch.Tensor,
        sigma: torch.Tensor,
        text: tuple[torch.Tensor, torch.Tensor],
        guidance: torch.Tensor | None = None,
        reference: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Velocity [B,4,H,W] at noise level `sigma` [B] of latents [B,4,H,W].

        The clean latents [B,4,H,W] of a `reference` stand behind them, as in FLUX.1-Kontext.
        """
        rows, columns = latents.shape[-2] // 2, latents.shape[-1] // 2
        pooled, words = text
        pictures = [latents] if reference is None else [latents, reference]
        places = [position_ids(rows, columns, image) for image in range(len(pictures))]
        tokens = self.transformer(
            hidden_states=torch.cat([pack(each) for each in pictures], dim=1),
            encoder_hidden_states=words,
            pooled_projections=pooled,
            timestep=sigma,
            img_ids=torch.cat(places).to(latents.device),
            txt_ids=torch.zeros(words.shape[1], 3, device=latents.device),
            guidance=guidance,
            return_dict=False,
        )[0]
        return unpack(tokens[:, : rows * columns], rows, columns)
