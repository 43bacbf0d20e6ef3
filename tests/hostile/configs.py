"""Parts of a pipeline whose configurations ask for too much, or are none, with their own weights.

Each of ``ATTACKS`` changes a bundle in place, or a bare pipeline folder. Files are replaced, so
that a copy by hard links leaves its original alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.hostile.digests import replaced
from tests.hostile.weights import changed_config, part_of

Attack = Callable[[Path], None]

MUCH = 10**9
CONFIGS = ("text_encoder/config.json", "text_encoder_2/config.json", "vae/config.json")

NO_OBJECTS: dict[str, bytes] = {
    "null": b"null",
    "a text": b'"config"',
    "a list": b"[]",
    "too deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "not JSON": b"{",
    "large": b" " * (2 * 1024 * 1024) + b"{}",
    "no number": b'{"hidden_size": NaN}',
}


def content(path: str, data: bytes, folder: Path) -> None:
    """Other bytes in a file."""
    replaced(part_of(folder, path), data)


def tokenizer(number: str, change: Callable[[dict[str, Any]], object], folder: Path) -> None:
    """A tokenizer changed by ``change``, in place."""
    path = part_of(folder, f"tokenizer{number}") / "tokenizer.json"
    told = json.loads(path.read_bytes())
    change(told)
    replaced(path, json.dumps(told).encode())


def bomb(told: dict[str, Any]) -> None:
    """Every letter becomes a thousand, four times over."""
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    told["normalizer"] = {"type": "Sequence", "normalizers": [step] * 4}


def many_steps(told: dict[str, Any]) -> None:
    """Between any two letters one more, sixty times."""
    step = {"type": "Replace", "pattern": {"Regex": ""}, "content": "a"}
    told["normalizer"] = {"type": "Sequence", "normalizers": [step] * 60}


def slow_pattern(told: dict[str, Any]) -> None:
    """A pattern that takes for ever over a word that it is not in."""
    pattern = {"Regex": "(a+)+$"}
    told["pre_tokenizer"] = {
        "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False,
    }  # fmt: skip


def large_number(told: dict[str, Any]) -> None:
    """Padding to a billion tokens."""
    told["padding"] = {
        "strategy": {"Fixed": MUCH}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>",
    }  # fmt: skip


def beyond(told: dict[str, Any]) -> None:
    """A word whose number no encoder has an embedding for."""
    told["model"]["vocab"]["apple"] = MUCH


def mark_beyond(told: dict[str, Any]) -> None:
    """The mark at the end likewise."""
    for each in told["post_processor"]["special_tokens"].values():
        each["ids"] = [MUCH // 10_000]


def no_unknown(told: dict[str, Any]) -> None:
    """No token for words that are not known."""
    told["model"]["unk_token"] = "<none>"


_TOKENIZERS = (bomb, many_steps, slow_pattern, large_number, beyond, mark_beyond, no_unknown)
_SETTINGS: dict[str, list[dict[str, Any]]] = {
    CONFIGS[0]: [{"num_hidden_layers": 10**6}, {"vocab_size": MUCH}, {"num_labels": MUCH}],
    CONFIGS[1]: [{"num_layers": 10**6}, {"d_ff": MUCH}, {"num_heads": 10**18}],
    CONFIGS[2]: [
        {"latent_channels": MUCH}, {"layers_per_block": 10**6}, {"block_out_channels": [MUCH] * 3},
        {"block_out_channels": [16] * 100_000},
    ],
}  # fmt: skip

SETTINGS: tuple[tuple[str, str, tuple[object, ...]], ...] = (
    ("text_encoder", "num_attention_heads", (-4, 0, 3, 2.0, True, None, "4", [4])),
    ("text_encoder", "hidden_size", (0, -128, "128")),
    ("text_encoder", "max_position_embeddings", (0, -1, 1)),
    ("text_encoder", "hidden_act", ("", "os.system", None, "QuickGELU")),
    ("text_encoder", "layer_norm_eps", (0.0, -1e-5, 1e308, "1e-5", None)),
    ("text_encoder", "eos_token_id", (-1, 10**6, [3], None)),
    ("text_encoder", "return_dict", (False, None, 0)),
    ("text_encoder", "output_hidden_states", (True,)),
    ("text_encoder", "output_attentions", (True,)),
    ("text_encoder", "model_type", ("t5", None)),
    ("text_encoder_2", "num_heads", (-4, 0, 4.0)),
    ("text_encoder_2", "relative_attention_max_distance", (-1, 0, 8, 128.0, None)),
    ("text_encoder_2", "relative_attention_num_buckets", (-32, 0, 2)),
    ("text_encoder_2", "feed_forward_proj", ("", "gated", "gated-os.system", "a-b-c", None)),
    ("text_encoder_2", "layer_norm_epsilon", (0, -1.0, None)),
    ("text_encoder_2", "is_decoder", (True,)),
    ("text_encoder_2", "return_dict", (False,)),
    ("text_encoder_2", "chunk_size_feed_forward", (-1, 7)),
    ("text_encoder_2", "per_layer_config", ({"0": {"num_heads": 2}},)),
    ("vae", "scaling_factor", (0, -0.5, 1e-300, 1e308, None, "0.7772", True)),
    ("vae", "shift_factor", (None, "0.0226", [0.0], 1e308)),
    ("vae", "norm_num_groups", (0, -8, 7, None)),
    ("vae", "act_fn", ("", "os.system", None)),
    ("vae", "in_channels", (1, 4)),
    ("vae", "out_channels", (1, 4)),
    ("vae", "block_out_channels", ([], [16, 32], 16, [16, 32, -64])),
    ("vae", "up_block_types", ([], ["UpDecoderBlock2D"], ["UpBlock2D"] * 3, "UpDecoderBlock2D")),
    ("vae", "mid_block_add_attention", ("no", 0)),
    ("vae", "_class_name", ("ZooTransformer2DModel", None)),
)
"""Values that no part has, by its folder and the setting."""

NEEDED: tuple[tuple[str, str], ...] = (
    *(("text_encoder", key) for key in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act",
        "num_attention_heads", "max_position_embeddings", "layer_norm_eps", "eos_token_id")),
    *(("text_encoder_2", key) for key in (
        "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj",
        "relative_attention_num_buckets", "layer_norm_epsilon")),
    *(("vae", key) for key in (
        "in_channels", "out_channels", "latent_channels", "block_out_channels", "norm_num_groups",
        "down_block_types", "up_block_types", "layers_per_block", "act_fn", "scaling_factor",
        "shift_factor")),
)  # fmt: skip
"""Settings by which a part computes: without them a library would take its own defaults."""


def left_out(path: str, key: str, folder: Path) -> None:
    """A configuration without one of its settings."""
    file = part_of(folder, path)
    told = json.loads(file.read_bytes())
    told.pop(key, None)
    replaced(file, json.dumps(told).encode())


TOKENS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *(("tokenizer", "tokenizer_config.json", each) for each in (
        {"model_max_length": -32}, {"model_max_length": 0}, {"model_max_length": "77"},
        {"model_max_length": 1}, {"unk_token": ""}, {"unk_token": 7}, {"eos_token": ["</s>"]},
        {"pad_token": {"content": ""}}, {"pad_token": {"content": "<pad>", "more": 1}},
        {"unk_token": "\ud800"}, {"bos_token": "x" * 5_000}, {"padding_side": "up"},
        {"pad_to_multiple_of": 10**9}, {"extra_ids": 10**9}, {"extra_special_tokens": [""]},
        {"extra_special_tokens": ["<more>"]}, {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"added_tokens_decoder": {"5": "a"}}, {"vocab": "/etc/hostname"},
        {"merges": "/etc/hostname"}, {"vocab": {"a": 1}}, {"decode": "x"}, {"zoo": 1},
        {"model_input_names": ["nothing"]}, {"tokenizer_type": "bert"}, {"unk_token": "<zoo>"},
        {"chat_template": {"a": [1]}})),
    *(("tokenizer_2", "special_tokens_map.json", each) for each in (
        {"vocab": "/etc/hostname"}, {"model_max_length": -1}, {"unk_token": ""}, {"unk_token": 7},
        {"eos_token": "<zoo>"}, {"pad_token": {"content": "<pad>", "special": 2}})),
)  # fmt: skip
"""Settings that no tokenizer has, by its folder and file."""


def with_tokens(part: str, name: str, settings: dict[str, Any], folder: Path) -> None:
    """More settings in a file of a tokenizer, which may not have it yet."""
    file = part_of(folder, part) / name
    told = json.loads(file.read_bytes()) if file.exists() else {}
    replaced(file, json.dumps(told | settings).encode())


DOORS: dict[str, Attack] = {
    **{f"{part}: {settings}"[:60]: partial(with_tokens, part, name, settings)
       for part, name, settings in TOKENS},
    **{f"{part}: {key}={value!r}"[:60]: partial(changed_config, f"{part}/config.json", {key: value})
       for part, key, values in SETTINGS for value in values},
    **{f"{part}: no {key}": partial(left_out, f"{part}/config.json", key)
       for part, key in NEEDED},
}  # fmt: skip
"""Each of these by name, as a change of a folder."""

ATTACKS: dict[str, Attack] = {
    **{f"{path}: {name}": partial(content, path, data)
       for path in CONFIGS for name, data in NO_OBJECTS.items()},
    **{f"{path}: {next(iter(each))}, {index}": partial(changed_config, path, each)
       for path, settings in _SETTINGS.items() for index, each in enumerate(settings)},
    **{f"tokenizer{number}: {change.__name__}": partial(tokenizer, number, change)
       for number in ("", "_2") for change in _TOKENIZERS},
    **{f"tokenizer: {name}": partial(content, "tokenizer/tokenizer_config.json", data)
       for name, data in NO_OBJECTS.items()},
    **{f"tokenizer of {kind!r}"[:40]: partial(
           changed_config, "tokenizer/tokenizer_config.json", {"tokenizer_class": kind})
       for kind in ("ZooTokenizer", None, 7, "BertTokenizer\x1b]52;c;eA==\x07" * 1000)},
    "tokenizer without padding": partial(
        changed_config, "tokenizer/tokenizer_config.json", {"pad_token": None}),
}  # fmt: skip
"""By name; all are refused by a build, and when what they are in is opened."""
