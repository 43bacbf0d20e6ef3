"""Configurations as libraries have stored them: of FLUX.1, of T5's first release, and of diffusers'
own tests. No weights belong to them here.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

_CLIP: Config = {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.3",
    "vocab_size": 49408,
}
_T5: Config = {
    "_name_or_path": "google/t5-v1_1-xxl",
    "architectures": ["T5EncoderModel"],
    "classifier_dropout": 0.0,
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.3",
    "use_cache": True,
    "vocab_size": 32128,
}
_VAE: Config = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.30.0.dev0",
    "_name_or_path": "../checkpoints/flux-dev",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 2,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
_FIRST_T5 = {
    name: value
    for name, value in _T5.items()
    if name not in ("relative_attention_max_distance", "dense_act_fn", "is_gated_act")
} | {"architectures": ["T5ForConditionalGeneration"]}

CONFIGS: dict[str, dict[str, Config]] = {
    "FLUX.1": {"text_encoder": _CLIP, "text_encoder_2": _T5, "vae": _VAE},
    "older": {
        "text_encoder": _CLIP
        | {"return_dict": True, "output_attentions": False, "torchscript": False, "top_k": 50},
        "text_encoder_2": _FIRST_T5,
        "vae": _VAE | {"sample_size": [1024, 1024]},
    },
    "diffusers' tests": {
        "text_encoder": _CLIP
        | {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "vocab_size": 1000}
        | {"hidden_act": "gelu", "num_hidden_layers": 5, "projection_dim": 32},
        "text_encoder_2": _T5
        | {"d_ff": 37, "d_kv": 8, "d_model": 32, "num_heads": 4, "num_layers": 5}
        | {"feed_forward_proj": "relu", "relative_attention_num_buckets": 8, "vocab_size": 1103}
        | {"initializer_factor": 0.002},
        "vae": _VAE
        | {"block_out_channels": [4], "down_block_types": ["DownEncoderBlock2D"]}
        | {"up_block_types": ["UpDecoderBlock2D"], "latent_channels": 1, "norm_num_groups": 1}
        | {
            "layers_per_block": 1,
            "sample_size": 32,
            "shift_factor": 0.0609,
            "scaling_factor": 1.5035,
        },
    },
}


def _token(content: str, **more: bool) -> Config:
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {"content": content, **plain, **more}


_MARKS = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
_SENTINELS = [f"<extra_id_{number}>" for number in range(100)]

TOKENIZERS: list[Config] = [
    {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            "49406": _token("<|startoftext|>", normalized=True, special=True),
            "49407": _token("<|endoftext|>", special=True),
        },
        **_MARKS,
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": "<|endoftext|>",
    },
    {
        "add_prefix_space": True,
        "added_tokens_decoder": {"0": _token("<pad>", special=True)},
        "additional_special_tokens": _SENTINELS,
        "clean_up_tokenization_spaces": True,
        "eos_token": "</s>",
        "extra_ids": 100,
        "legacy": True,
        "model_max_length": 512,
        "pad_token": "<pad>",
        "sp_model_kwargs": {},
        "tokenizer_class": "T5Tokenizer",
        "unk_token": "<unk>",
    },
    {
        "name_or_path": "openai/clip-vit-large-patch14",
        "add_prefix_space": False,
        **{name: {"__type": "AddedToken", **_token(each)} for name, each in _MARKS.items()},
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": None,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": {"__type": "AddedToken", **_token("<|endoftext|>")},
    },
]
TOKENS: list[Config] = [
    {**{name: _token(each, normalized=True) for name, each in _MARKS.items()}, "pad_token": "!"},
    {"additional_special_tokens": _SENTINELS, "eos_token": _token("</s>"), "unk_token": "<unk>"},
]
"""Of ``special_tokens_map.json``."""
