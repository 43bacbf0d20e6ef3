"""Bounds for what a library builds from a part's configuration, asked before any library does.

Between the files of a pipeline folder, which may come from anywhere, and the libraries that read
them. A configuration of a kilobyte can ask for a million layers, or a tokenizer make gigabytes of a
word; what is stored beside it says how large an honest one is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import ManifestInvalid, WeightsNotFound
from fresco_trt.files.canonical_json import bounded_json, quoted

if TYPE_CHECKING:
    from torch import Tensor

MAX_CONFIG_BYTES = 1024 * 1024
MAX_TOKENIZER_BYTES = 32 * 1024 * 1024
"""T5's has 2.4 MB, Qwen2's 11, Llama 3's 17: 128,256 tokens and 280,147 merges, each a list of two.
"""

MAX_NUMBER = 65_536
"""Of a setting that sizes nothing: labels, lengths, identifiers."""

_DEPTHS = {"num_layers": 4, "num_single_layers": 4, "num_hidden_layers": 4, "layers_per_block": 16}
"""Settings that count layers, and tensors that each has at least; of the last kind on each level of
both encoder and decoder.
"""

_WIDTHS = frozenset(
    (
        "attention_head_dim",
        "axes_dims_rope",
        "block_out_channels",
        "d_ff",
        "d_kv",
        "d_model",
        "hidden_size",
        "in_channels",
        "intermediate_size",
        "joint_attention_dim",
        "latent_channels",
        "max_position_embeddings",
        "num_attention_heads",
        "num_heads",
        "out_channels",
        "pooled_projection_dim",
        "relative_attention_num_buckets",
        "vocab_size",
    )
)
"""Settings that size tensors: none is over the longest side of a stored one."""


def read_object(
    path: Path, name: str | None = None, *, most_bytes: int = MAX_CONFIG_BYTES
) -> dict[str, Any]:
    """The JSON object in a file, which errors call ``name`` (None: by its path).

    Raises WeightsNotFound for one over ``most_bytes``, or that holds no JSON object within bounds,
    and OSError where there is none.
    """
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    try:
        told = str(path) if name is None else name
        return bounded_json(data, told, most_bytes=most_bytes, most_values=most_bytes, digits=40)
    except ManifestInvalid as error:
        raise _refused(error.given, error.expected) from error


def check_extent(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise WeightsNotFound for settings that ask for more layers or wider ones than there are
    tensors for. ``name`` is the part's.
    """
    sides = [side for tensor in tensors.values() if tensor.numel() for side in tensor.shape]
    widest, levels = max(sides, default=0), settings.get("block_out_channels")
    for key, number in _numbers(settings):
        most = widest if key in _WIDTHS else max(widest, MAX_NUMBER)
        if key in _DEPTHS:
            times = len(levels) if isinstance(levels, list) else 1
            most = len(tensors) // (_DEPTHS[key] * max(1, times))
        if not -MAX_NUMBER <= number <= most:
            given = f"{name} has {quoted(key)} of {quoted(number)}"
            raise _refused(given, f"at most {most}, by the tensors that are stored")


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number of a value of bounded depth, with the key that it stands under."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _numbers(each, name)
    elif isinstance(value, list):
        for each in value:
            yield from _numbers(each, key)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield key, value


# --- tokenizers -------------------------------------------------------------------------------

_CLASSES = (
    "CLIPTokenizer",
    "CLIPTokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "PreTrainedTokenizerFast",
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
    "T5Tokenizer",
    "T5TokenizerFast",
    "TokenizersBackend",
)
_STEPS: Mapping[str, Collection[str]] = {
    "normalizer": ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Precompiled", "Replace", "Strip"),
    "pre_tokenizer": ("ByteLevel", "Metaspace", "Split", "Whitespace", "WhitespaceSplit"),
    "post_processor": ("ByteLevel", "RobertaProcessing", "TemplateProcessing"),
    "model": ("BPE", "Unigram", "WordLevel"),
}
"""Steps of a tokenizer, by kind, that take time and memory in proportion to a prompt."""

_PATTERNS = (
    r"\s+",
    " {2,}",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
)
"""Regular expressions of CLIP's, T5's, Qwen2's and Llama 3's tokenizers: others may take for ever
over a word.
"""

_MOST_STEPS = 8
_MOST_LETTERS = 1  # that a letter is replaced by


def check_size(path: Path, most_bytes: int) -> None:
    """Raise WeightsNotFound for a file over ``most_bytes``, which a library would read whole."""
    if path.stat().st_size > most_bytes:
        name = f"{path.name} of {path.parent.name}"
        raise _refused(f"{name} has over {most_bytes} bytes", f"at most {most_bytes} bytes")


def check_tokenizer(folder: Path) -> None:
    """Raise WeightsNotFound for a tokenizer of another kind than these models have, or one whose
    steps could make much of little. What it has no file for is not looked at.
    """
    settings = _optional(folder / "tokenizer_config.json")
    kind = settings.get("tokenizer_class")
    if kind not in _CLASSES:
        raise _refused(
            f"{folder.name} is of the class {quoted(kind)}", f"one of {_listed(_CLASSES)}"
        )
    stored = _optional(folder / "tokenizer.json")
    for part, kinds in _STEPS.items():
        for index, step in enumerate(_steps(stored.get(part))):
            if step.get("type") not in kinds or index >= _MOST_STEPS:
                given = f"{folder.name} has the {part} {quoted(step.get('type'))}"
                raise _refused(given, f"at most {_MOST_STEPS} of {_listed(kinds)}")
            if "pattern" in step:
                _check_pattern(step, folder.name)
    for key, number in _numbers({name: each for name, each in stored.items() if name != "model"}):
        if abs(number) > 16 * MAX_NUMBER:
            raise _refused(f"{folder.name} has {quoted(key)} of {number}", f"{16 * MAX_NUMBER}")


def _check_pattern(step: Mapping[str, Any], name: str) -> None:
    pattern, content = step["pattern"], step.get("content", "")
    known = isinstance(pattern, dict) and len(pattern) == 1
    regex = pattern.get("Regex") if known else None
    text = pattern.get("String") if known else None
    if regex not in _PATTERNS and not (isinstance(text, str) and text):
        raise _refused(f"{name} looks for {quoted(pattern)}", f"one of {_listed(_PATTERNS)}")
    if not isinstance(content, str) or len(content) > _MOST_LETTERS:
        raise _refused(f"{name} puts in {quoted(content)}", "one letter for others, or none")


def _steps(value: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a part, without the sequences that they stand in."""
    if isinstance(value, dict) and value.get("type") == "Sequence":
        for name in ("normalizers", "pretokenizers", "processors"):
            for each in value.get(name) or ():
                yield from _steps(each)
    elif value is not None:
        yield value if isinstance(value, dict) else {"type": value}


def _optional(path: Path) -> dict[str, Any]:
    name = f"{path.name} of {path.parent.name}"
    return read_object(path, name, most_bytes=MAX_TOKENIZER_BYTES) if path.is_file() else {}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _refused(given: str, expected: str) -> WeightsNotFound:
    return WeightsNotFound(
        given,
        expected=expected,
        fix="build the bundle again from a pipeline folder as diffusers stores it",
    )
