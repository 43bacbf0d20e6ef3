"""The tensors of a checkpoint as they are stored: which files those are, and what they hold.

Between a path and the weights in the data path; shared by every family. In a folder these are the
files that diffusers itself would load, and a tensor has one place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import UnsupportedWeights, WeightsNotFound
from fresco_trt.models.extent import read_object

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
INDEX_NAME = f"{WEIGHTS_NAME}.index.json"
ENCODER_NAME = "model.safetensors"
"""What transformers calls the weights of a model."""

LAYOUTS = (
    "a diffusers pipeline folder (with transformer/config.json), a transformer folder "
    "(with config.json) or one .safetensors file"
)
PASS = f"pass --weights PATH, {LAYOUTS}, or --weights random"

_FLOATING = ("F", "BF")
"""How safetensors' names of floating-point types begin."""

MAX_INDEX_BYTES = 4 * 1024 * 1024
"""That of FLUX.1-dev's transformer has 0.12 MB."""

_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
_MAGIC = {
    b"GGUF": "a GGUF file",
    b"PK\x03\x04": "a file of torch.save, which is a pickle",
    b"\x80\x02": "a file of torch.save, which is a pickle",
    b"version https://git-lfs": "a pointer of Git LFS; the file itself was not fetched",
}


def read_weights(source: Path, name: str = WEIGHTS_NAME) -> dict[str, Tensor]:
    """Every tensor of a model's folder or of one file, memory-mapped.

    Of a folder: of :func:`weight_files`. Raises WeightsNotFound if a file is missing, truncated or
    no safetensors, or is not what the index says, and for a tensor that two files hold.
    """
    return _read(source, name, _tensors)


def read_stand_ins(source: Path, name: str = WEIGHTS_NAME) -> dict[str, Tensor]:
    """As :func:`read_weights`, with zeros in the tensors' places, which take no memory: the names,
    kinds and shapes are read and nothing else. float32 for any floating-point numbers, int64 for
    whole ones.
    """
    return _read(source, name, _stand_ins)


def weight_files(folder: Path, name: str) -> tuple[str, ...]:
    """Names of the files in ``folder`` that the library reads which calls its weights ``name``.

    diffusers prefers an index, transformers the one file. Raises WeightsNotFound for an index that
    names what is elsewhere.
    """
    index = _index_of(folder, name)
    return (name,) if index is None else tuple(sorted(set(read_index(index).values())))


def check_plain(path: Path) -> None:
    """Raise WeightsNotFound for what is there and no file, nor a link to one, as in a hub's cache:
    reading a pipe or a device would wait, or never end.
    """
    if path.exists() and not path.is_file():
        raise WeightsNotFound(
            f"{path} is no file",
            expected="a plain file, or a link to one",
            fix="store the folder again with save_pretrained, or fetch it again",
        )


def _read(source: Path, name: str, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    if not source.is_dir():
        return read(source)
    index = _index_of(source, name)
    if index is not None:
        return _indexed(source, read_index(index), read)
    if not os.path.lexists(source / name):
        raise _neither(source, name)
    return read(source / name)


def _index_of(folder: Path, name: str) -> Path | None:
    """The index by which the weights are read, if by one."""
    index = folder / f"{name}.index.json"
    single = name == ENCODER_NAME and os.path.lexists(folder / name)
    return index if os.path.lexists(index) and not single else None


def _neither(source: Path, name: str) -> WeightsNotFound:
    others = sorted(path for path in source.iterdir() if _holds_weights(path))
    for path in others:
        check_form(path)
    beside = f", only {', '.join(path.name for path in others)}" if others else ""
    return WeightsNotFound(
        f"neither {name}.index.json nor {name} in {source}{beside}",
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
    """The file of every tensor, as an index has it, all in the same folder; raises WeightsNotFound
    for one that is none.
    """
    check_plain(index)
    try:
        stored = read_object(index, most_bytes=MAX_INDEX_BYTES)
    except WeightsNotFound as error:
        raise _wrong_index(error.given) from error
    except OSError as error:
        raise _wrong_index(f"{index} cannot be read ({error})") from error
    named = stored.get("weight_map")
    if not isinstance(named, dict) or not named:
        raise _wrong_index(f"{index} has no weight_map")
    for file in named.values():
        if not isinstance(file, str) or PurePosixPath(file).name != file:
            raise _wrong_index(f"{index} names {file!r}")
    return named


def _indexed(
    folder: Path, weight_map: Mapping[str, str], read: Callable[[Path], dict[str, Tensor]]
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        found = read(folder / file)
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
    from safetensors.torch import load_file

    with _reading(file):
        found: dict[str, Tensor] = load_file(file)
    return found


def _stand_ins(file: Path) -> dict[str, Tensor]:
    import torch
    from safetensors import safe_open

    untyped: Any = safe_open
    with _reading(file), untyped(file, framework="pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        told = {name: (each.get_dtype(), each.get_shape()) for name, each in slices.items()}
    zero = {True: torch.zeros(()), False: torch.zeros((), dtype=torch.int64)}
    return {
        name: zero[dtype.startswith(_FLOATING)].expand(shape)
        for name, (dtype, shape) in told.items()
    }


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    check_plain(file)
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise WeightsNotFound(
            f"{file} cannot be read ({_kind(file) or error})", expected=LAYOUTS, fix=PASS
        ) from error


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
