"""Random prompt encoders and decoder at a FLUX model's real widths, for engines of random weights.

What `--weights random` puts around a transformer whose own encoders are not at hand: latency can
then be measured from prompt to picture. Encoders are one layer deep, and the picture is noise.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fresco_trt.models.quiet import no_bar

if TYPE_CHECKING:
    from pathlib import Path

    from fresco_trt.plan.facts import ModelFacts

_WIDTH = 64  # of everything that no engine sees: heads, hidden layers


def write_random_pipeline(facts: ModelFacts, folder: Path) -> Path:
    """Write a diffusers pipeline folder without a transformer, the same bytes every time.

    The pooled vector has `facts.pooled_dim` channels, the sequence `facts.text_dim`; the decoder
    makes `facts.vae_scale` pixels of a latent pixel. Prompts are read byte by byte. Returns
    `folder`.
    """
    import torch
    from diffusers.schedulers import FlowMatchEulerDiscreteScheduler

    with torch.random.fork_rng(devices=()), no_bar():
        torch.manual_seed(0)
        parts: dict[str, Any] = {
            "scheduler": FlowMatchEulerDiscreteScheduler(**_shift(facts)),
            "text_encoder": _pooled_encoder(facts),
            "text_encoder_2": _sequence_encoder(facts),
            "tokenizer": _tokenizer(facts),
            "tokenizer_2": _tokenizer(facts),
            "vae": _decoder(facts),
        }
        for name, part in parts.items():
            part.save_pretrained(folder / name)
    index = {"_class_name": "FluxPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")
    return folder


def _shift(facts: ModelFacts) -> dict[str, Any]:
    """What the model's own scheduler is told."""
    rule = facts.shift
    if rule is None:
        return {"shift": facts.fixed_shift}
    return {
        "use_dynamic_shifting": True,
        "base_shift": rule.base_shift,
        "max_shift": rule.max_shift,
        "base_image_seq_len": rule.base_tokens,
        "max_image_seq_len": rule.max_tokens,
    }


def _tokenizer(facts: ModelFacts) -> Any:
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
    untyped: Any = PreTrainedTokenizerFast
    return untyped(
        tokenizer_object=tokenizer,
        model_max_length=facts.text_tokens,
        pad_token="<pad>",
        eos_token="</s>",
    )


_VOCABULARY = 258  # the bytes, padding and the end mark


def _pooled_encoder(facts: ModelFacts) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=_VOCABULARY,
        hidden_size=facts.pooled_dim,
        intermediate_size=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=facts.text_tokens,
        projection_dim=_WIDTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return CLIPTextModel(config)


def _sequence_encoder(facts: ModelFacts) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=_VOCABULARY,
        d_model=facts.text_dim,
        d_kv=_WIDTH,
        d_ff=_WIDTH,
        num_layers=1,
        num_heads=1,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)


def _decoder(facts: ModelFacts) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    levels = facts.vae_scale.bit_length()
    untyped: Any = AutoencoderKL
    return untyped(
        latent_channels=facts.latent_channels,
        block_out_channels=(16,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
