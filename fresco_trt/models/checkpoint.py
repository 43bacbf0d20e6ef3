"""The tensors of a checkpoint as they are stored: which files those are, and what they hold.

Between a path and the weights in the data path; shared by every family. In a folder these are the
files that diffusers itself would load, and a tensor has one place.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import UnsupportedWeights, WeightsNotFound

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
INDEX_NAME = f"{WEIGHTS_NAME}.index.json"

LAYOUTS = (
    "a diffusers pipeline folder (with transformer/config.json), a transformer folder "
    "(with config.json) or one .safetensors file"
)
PASS = f"pass --weights PATH, {LAYOUTS}, or --weights random"

_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
_MAGIC = {
    b"GGUF": "a GGUF file",
    b"PK\x03\x04": "a file of torch.save, which is a pickle",
    b"\x80\x02": "a file of torch.save, which is a pickle",
    b"version https://git-lfs": "a pointer of Git LFS; the file itself was not fetched",
}


def read_weights(source: Path) -> dict[str, Tensor]:
    """Every tensor of a transformer folder or of one file, memory-mapped.

    Of a folder: of the files that its index names or, without one, of ``WEIGHTS_NAME``. Raises
    WeightsNotFound if a file is missing, truncated or no safetensors, or is not what the index
    says, and for a tensor that two files hold.
    """
    if not source.is_dir():
        return _tensors(source)
    index = source / INDEX_NAME
    if index.is_file():
        return _indexed(source, read_index(index))
    if (source / WEIGHTS_NAME).is_file():
        return _tensors(source / WEIGHTS_NAME)
    others = sorted(path for path in source.iterdir() if _holds_weights(path))
    for path in others:
        check_form(path)
    beside = f", only {', '.join(path.name for path in others)}" if others else ""
    raise WeightsNotFound(
        f"neither {INDEX_NAME} nor {WEIGHTS_NAME} in {source}{beside}",
        expected="one of the two, as diffusers loads them: other files may be of other weights",
        fix="pass the one .safetensors file itself, or complete the folder" if beside else PASS,
    )


def check_form(path: Path) -> None:
    """Raise UnsupportedWeights for a file that holds weights in a form that is not read, by its
    name.
    """
    kind = path.suffix.lower()
    if kind == ".gguf":
        raise UnsupportedWeights(
            f"{path} is a GGUF file: its weights are packed",
            expected="safetensors, with weights that are not packed",
            fix="pass the weights that it was made from, as .safetensors or a diffusers folder; "
            "a precision of fp8 or int8 quantises them in the build",
        )
    if kind in _PICKLES:
        raise UnsupportedWeights(
            f"{path} is a pickle: reading it would run what it says",
            expected="safetensors",
            fix="read it with torch.load(path, weights_only=True), and write its tensors with "
            "safetensors.torch.save_file",
        )


def counted(names: Collection[str]) -> str:
    """Names of tensors in a few words: how many there are, and the first."""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}, the first {min(names)}"


def refused_in(folder: Path) -> None:
    """:func:`check_form` of every file in a folder that holds no transformer of diffusers'."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            check_form(path)


def _holds_weights(path: Path) -> bool:
    return path.suffix.lower() in (".safetensors", ".gguf", *_PICKLES)


# --- an index ---------------------------------------------------------------------------------


def read_index(index: Path) -> dict[str, str]:
    """The file of every tensor, as an index has it; raises WeightsNotFound for one that is none."""
    try:
        stored: Any = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _wrong_index(f"{index} cannot be read ({error})") from error
    named = stored.get("weight_map") if isinstance(stored, dict) else None
    if not isinstance(named, dict) or not named:
        raise _wrong_index(f"{index} has no weight_map")
    for file in named.values():
        if not isinstance(file, str) or PurePosixPath(file).name != file:
            raise _wrong_index(f"{index} names {file!r}")
    return named


def _indexed(folder: Path, weight_map: Mapping[str, str]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        found = _tensors(folder / file)
        listed = {name for name, place in weight_map.items() if place == file}
        for problem in _problems(found.keys(), listed, tensors.keys()):
            raise _wrong_index(f"{folder / file} {problem}")
        tensors |= found
    return tensors


def _problems(found: Any, listed: set[str], before: Any) -> Iterator[str]:
    """How the names in a file differ from those that the index has for it, each in a few words."""
    for names, words in (
        (found & before, "holds what another file holds"),
        (listed - found, "lacks what the index says it holds"),
        (found - listed, "holds what the index does not say"),
    ):
        if names:
            yield f"{words}: {counted(names)}"


def _wrong_index(given: str) -> WeightsNotFound:
    return WeightsNotFound(
        given,
        expected="an index that names the file of every tensor, and files that hold just these",
        fix="store the folder again with save_pretrained, or fetch it again",
    )


# --- a file -----------------------------------------------------------------------------------


def _tensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise WeightsNotFound(
            f"{file} cannot be read ({_kind(file) or error})", expected=LAYOUTS, fix=PASS
        ) from error
    return found


def _kind(file: Path) -> str | None:
    """What a file is that is no safetensors, by its first bytes."""
    try:
        with file.open("rb") as stream:
            begins = stream.read(32)
    except OSError:
        return None
    return next(
        (f"it is {kind}" for magic, kind in _MAGIC.items() if begins.startswith(magic)), None
    )
