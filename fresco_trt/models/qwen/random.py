"""A random prompt encoder and decoder at a Qwen-Image model's real widths, for engines of random
weights.

What `--weights random` puts around a transformer whose own encoder is not at hand: latency can then
be measured from prompt to picture. The encoder is one layer deep, and the picture is noise.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fresco_trt.models.quiet import no_bar
from fresco_trt.models.qwen.components import scheduler_settings
from fresco_trt.models.qwen.prompts import PIPELINES

if TYPE_CHECKING:
    from pathlib import Path

    from fresco_trt.plan.facts import ModelFacts

_MARKS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_HEAD = 32  # channels of everything that no engine sees


def write_random_pipeline(facts: ModelFacts, folder: Path) -> Path:
    """Write a diffusers pipeline folder without a transformer, the same bytes every time.

    The text has `facts.text_dim` channels; the decoder makes `facts.vae_scale` pixels of a latent
    pixel. Prompts are read byte by byte. Returns `folder`.
    """
    import torch
    from diffusers.schedulers import FlowMatchEulerDiscreteScheduler

    untyped: Any = FlowMatchEulerDiscreteScheduler
    shift = {key: each for key, each in scheduler_settings(facts).items() if key[0] != "_"}
    with torch.random.fork_rng(devices=()), no_bar():
        torch.manual_seed(0)
        tokenizer = _tokenizer(facts)
        parts: dict[str, Any] = {
            "scheduler": untyped(**shift),
            "text_encoder": _encoder(facts, tokenizer),
            "tokenizer": tokenizer,
            "vae": _codec(facts),
        }
        for name, part in parts.items():
            part.save_pretrained(folder / name)
    index = {"_class_name": _pipeline(facts)}
    (folder / "model_index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")
    return folder


def _pipeline(facts: ModelFacts) -> str:
    """The class of diffusers' pipeline that draws with a model."""
    if not facts.references:
        return PIPELINES[0]
    return PIPELINES[2 if facts.references_at_zero else 1]


def _tokenizer(facts: ModelFacts) -> Any:
    import transformers
    from tokenizers import pre_tokenizers

    letters = [*_MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    untyped: Any = transformers
    return untyped.Qwen2Tokenizer(
        vocab={letter: number for number, letter in enumerate(letters)},
        merges=[],
        model_max_length=8 * facts.text_tokens,
        additional_special_tokens=list(_MARKS[1:]),
    )


def _encoder(facts: ModelFacts, tokenizer: Any) -> Any:
    import torch
    import transformers

    mark = tokenizer.convert_tokens_to_ids
    heads = facts.text_dim // _HEAD or 1
    width = facts.text_dim // heads
    untyped: Any = transformers
    config = untyped.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": facts.text_dim,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": heads,
            "num_key_value_heads": 1,
            "max_position_embeddings": facts.text_dim,
            "rms_norm_eps": 1e-6,
            "use_sliding_window": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [width // 4, width // 8, width // 2 - width // 4 - width // 8],
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": _HEAD,
            "intermediate_size": 64,
            "num_heads": 1,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "out_hidden_size": facts.text_dim,
            "fullatt_block_indexes": [0],
        },
        image_token_id=mark("<|image_pad|>"),
        video_token_id=mark("<|video_pad|>"),
        vision_start_token_id=mark("<|vision_start|>"),
        vision_end_token_id=mark("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    made = untyped.Qwen2_5_VLForConditionalGeneration(config)
    return made.to(torch.bfloat16)  # attention is as wide as the text


def _codec(facts: ModelFacts) -> Any:
    from diffusers import AutoencoderKLQwenImage

    levels = facts.vae_scale.bit_length()
    untyped: Any = AutoencoderKLQwenImage
    return untyped(
        base_dim=8,
        z_dim=facts.latent_channels,
        dim_mult=[1] * levels,
        num_res_blocks=1,
        temperal_downsample=[False] * (levels - 1),
        latents_mean=[0.1] * facts.latent_channels,
        latents_std=[1.5] * facts.latent_channels,
    )
