"""Where a model's weights are, whether they are the right ones, and their digest.

Left of the export in the data path; shared by every family. Looks at the path that was given,
then at the weights that ship with the package, then at the hub; never invents weights.

A model may ship with its transformer alone. A file ``shares.json`` in its folder then names the
packaged model whose prompt encoders, tokenizers, scheduler and decoder are its own, too:
``{"parts_of": "flux-tiny"}``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions, WeightsNotFound
from fresco_trt.models.checkpoint import (
    INDEX_NAME,
    LAYOUTS,
    PASS,
    check_form,
    counted,
    refused_in,
)
from fresco_trt.models.extent import read_object

if TYPE_CHECKING:
    import torch

FAMILIES = Path(__file__).parent
SHARES_NAME = "shares.json"


def bundled_folder(model: str) -> Path:
    """Where the weights of ``model`` are if they ship with the package: in its family's folder.

    Of a model that does not ship, a path with a star in the family's place, which is no folder.
    """
    inside = f"*/weights/{model}"
    return next(FAMILIES.glob(inside), FAMILIES / inside)


def find_transformer(weights: Path | None, *, model: str, repository: str | None) -> Path:
    """The transformer folder or ``.safetensors`` file that holds the weights of ``model``.

    With no ``weights``, looks in the package, then downloads ``repository`` from the hub (or takes
    the copy in the hub's local cache). Raises WeightsNotFound, which lists the places looked at,
    and UnsupportedWeights for a file in a form that is not read.
    """
    if weights is not None:
        return _given(weights.expanduser())
    bundled = bundled_folder(model)
    if bundled.is_dir():
        return _given(bundled)
    if repository is None:
        raise _not_found(f"no weights for {model} (looked at {bundled})")
    return _from_hub(repository, model, bundled)


def components_folder(folder: Path) -> Path:
    """Where the prompt encoders, tokenizers, scheduler and decoder of a model's ``folder`` are.

    In the folder itself, or in that of the packaged model which its ``shares.json`` names. Whether
    they are there is not looked at. Raises WeightsNotFound for a file that names no such model.
    """
    path = folder / SHARES_NAME
    return bundled_folder(_shared_model(path)) if path.is_file() else folder


def bundled_components(model: str) -> Path:
    """:func:`components_folder` of a model that may ship with the package; raises as that does."""
    return components_folder(bundled_folder(model))


def read_config(folder: Path) -> dict[str, Any]:
    """The transformer's stored configuration. Raises WeightsNotFound if it is no JSON object."""
    try:
        return read_object(folder / "config.json")
    except WeightsNotFound as error:
        raise _not_found(error.given) from error
    except OSError as error:
        raise _not_found(f"{folder / 'config.json'} cannot be read ({error})") from error


def check_names(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], *, what: str) -> None:
    """Raise IncompatibleOptions unless ``tensors`` are exactly the parameters of ``module``."""
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    if given == wanted:
        return
    raise IncompatibleOptions(
        f"{what}: {'; '.join(_differences(given, wanted))}",
        expected=f"the {len(wanted)} tensors of the model",
        fix="pass the weights that belong to --model, or the --model they belong to",
    )


def name_differences(given: AbstractSet[str], wanted: AbstractSet[str]) -> list[str]:
    """What is missing and what is left over, a clause each with its first example."""
    return [
        f"{word} {counted(names)}"
        for word, names in (("lacks", wanted - given), ("has also", given - wanted))
        if names
    ]


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all weights, sorted by name.

    The same weights give the same digest whatever file or device they came from.
    """
    return tensors_digest(module.state_dict())


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """As :func:`weights_digest`, of tensors by name."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        array: Any = flat.numpy()
        digest.update(memoryview(array))
    return digest.hexdigest()


def _shared_model(path: Path) -> str:
    """The packaged model that a ``shares.json`` names, one that has its parts to itself."""
    try:
        stored = read_object(path)
    except WeightsNotFound as error:
        raise _wrong_shares(error.given) from error
    except OSError as error:
        raise _wrong_shares(f"{path} cannot be read ({error})") from error
    if stored.keys() != {"parts_of"}:
        raise _wrong_shares(f"{path} holds something else")
    name = stored["parts_of"]
    indices = sorted(FAMILIES.glob("*/weights/*/model_index.json"))
    whole = [each.parent.name for each in indices]
    if name not in whole:
        have = ", ".join(whole) or "none"
        raise _wrong_shares(f"{path} names {name!r}, and the packaged models are {have}")
    return str(name)


def _wrong_shares(given: str) -> WeightsNotFound:
    return WeightsNotFound(
        given,
        expected='{"parts_of": NAME}, NAME being a model that ships whole with the package',
        fix="correct the file, or install the package again if it came with it",
    )


def _differences(
    given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """One clause per kind of difference, each with its first example."""
    yield from name_differences(given.keys(), wanted.keys())
    shared = wanted.keys() & given.keys()
    for name in sorted(name for name in shared if given[name] != wanted[name])[:1]:
        yield f"{name} has shape {given[name]} where {wanted[name]} is wanted"


def _given(path: Path) -> Path:
    if path.is_file() and path.suffix == ".safetensors":
        return path
    for folder in (path / "transformer", path):
        if (folder / "config.json").is_file():
            return folder
    if path.is_file():
        check_form(path)
    refused_in(path)
    state = "holds no transformer" if path.exists() else "does not exist"
    raise _not_found(f"the weights path {path} {state}")


def _from_hub(repository: str, model: str, bundled: Path) -> Path:
    from huggingface_hub import snapshot_download

    names = ("config.json", INDEX_NAME, "diffusion_pytorch_model*.safetensors")
    parts = [f"transformer/{name}" for name in names]
    try:
        # One try and no waiting: offline machines must get their answer in under a second.
        folder = snapshot_download(repository, allow_patterns=parts, etag_timeout=5)
    except Exception as error:  # the hub client raises its own, its HTTP client's and OS errors
        places = f"looked at {bundled} and at the hub, {repository}: {_first_line(error)}"
        raise _not_found(f"no weights for {model} ({places})") from error
    return _given(Path(folder))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _not_found(given: str) -> WeightsNotFound:
    return WeightsNotFound(given, expected=LAYOUTS, fix=PASS)
