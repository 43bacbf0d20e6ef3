"""Random prompt encoders and a random VAE at a HunyuanVideo model's real widths, for engines of
random weights.

What `--weights random` puts around a transformer whose own encoders are not at hand: latency can
then be measured from prompt to clip. Encoders are two layers deep, and the clip is noise.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fresco_trt.models.hunyuan.components import PIPELINE, scheduler_settings
from fresco_trt.models.hunyuan.prompts import POOLED_TOKENS
from fresco_trt.models.quiet import no_bar

if TYPE_CHECKING:
    from pathlib import Path

    from fresco_trt.plan.facts import ModelFacts

_WIDTH = 64  # of everything that no engine sees: heads, hidden layers
_PIECES = 4  # of the words that frame a prompt; a token has at most 256 letters


def write_random_pipeline(facts: ModelFacts, folder: Path) -> Path:
    """Write a diffusers pipeline folder without a transformer, the same bytes every time.

    The text has `facts.text_dim` channels, the pooled vector `facts.pooled_dim`; the VAE makes
    `facts.vae_scale` pixels of a latent pixel and `facts.temporal_scale` frames of a latent frame.
    Prompts are read byte by byte. Returns `folder`.
    """
    import torch
    from diffusers.schedulers import FlowMatchEulerDiscreteScheduler

    untyped: Any = FlowMatchEulerDiscreteScheduler
    shift = {key: each for key, each in scheduler_settings(facts).items() if key[0] != "_"}
    with torch.random.fork_rng(devices=()), no_bar():
        torch.manual_seed(0)
        words = framing_words()
        tokenizer = byte_tokenizer(words, 2 * facts.text_tokens + 256)
        parts: dict[str, Any] = {
            "scheduler": untyped(**shift),
            "text_encoder": _sequence_encoder(facts, len(tokenizer)),
            "text_encoder_2": _pooled_encoder(facts),
            "tokenizer": tokenizer,
            "tokenizer_2": byte_tokenizer((), POOLED_TOKENS),
            "vae": _codec(facts),
        }
        for name, part in parts.items():
            part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": PIPELINE}) + "\n", encoding="utf-8"
    )
    return folder


# --- tokenizers -------------------------------------------------------------------------------


def framing_words() -> tuple[str, ...]:
    """The beginning of what stands in front of every prompt, in a few long pieces: with these as
    one token each and the rest byte by byte it has as many tokens as diffusers cuts off.
    """
    from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video as library

    template: Any = library.DEFAULT_PROMPT_TEMPLATE
    front, count = template["template"].split("{}")[0], template["crop_start"]
    length = len(front) - (count - _PIECES)
    ends = [length * index // _PIECES for index in range(_PIECES + 1)]
    return tuple(front[start:end] for start, end in pairwise(ends))


def byte_tokenizer(words: tuple[str, ...], length: int) -> Any:
    """A tokenizer that reads byte by byte, and each of ``words`` as one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    ids = {letter: number for number, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", ids["</s>"])]
    )
    tokenizer.add_special_tokens(list(words))
    untyped: Any = PreTrainedTokenizerFast
    return untyped(
        tokenizer_object=tokenizer,
        model_max_length=length,
        pad_token="<pad>",
        eos_token="</s>",
    )


# --- encoders and VAE -------------------------------------------------------------------------


def _sequence_encoder(facts: ModelFacts, vocabulary: int) -> Any:
    import torch
    import transformers

    untyped: Any = transformers
    heads = max(facts.text_dim // _WIDTH, 1)
    config = untyped.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=facts.text_dim,
        intermediate_size=_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=1,
        max_position_embeddings=vocabulary,  # of no matter: positions turn
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return untyped.LlamaModel(config).to(torch.bfloat16)  # attention is as wide as the text


def _pooled_encoder(facts: ModelFacts) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=258,  # the bytes, padding and the end mark
        hidden_size=facts.pooled_dim,
        intermediate_size=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=POOLED_TOKENS,
        projection_dim=_WIDTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return CLIPTextModel(config)


def _codec(facts: ModelFacts) -> Any:
    from diffusers import AutoencoderKLHunyuanVideo

    levels = facts.vae_scale.bit_length()
    untyped: Any = AutoencoderKLHunyuanVideo
    return untyped(
        latent_channels=facts.latent_channels,
        block_out_channels=(8,) * levels,
        down_block_types=("HunyuanVideoDownBlock3D",) * levels,
        up_block_types=("HunyuanVideoUpBlock3D",) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.476986,
        spatial_compression_ratio=facts.vae_scale,
        temporal_compression_ratio=facts.temporal_scale,
        mid_block_add_attention=False,
    )
