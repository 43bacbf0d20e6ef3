"""A packaged model as one whole folder of diffusers' layout, also where it shares another's parts.

Beside the data path, and light to import. A build looks for the parts one by one
(:mod:`fresco_trt.models.weights` says where they are); diffusers' ``from_pretrained`` wants them in
one folder. For a model that ships with its transformer alone, that folder is put together once, in
the folder of kept things.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from fresco_trt.errors import FileMissing
from fresco_trt.files.atomic_folder import create_partial, put_in_place, remove, sweep, written_to
from fresco_trt.files.cache_folder import cache_folder
from fresco_trt.files.digests import folder_digest, walk
from fresco_trt.models.checkpoint import WEIGHTS_NAME
from fresco_trt.models.difference import holds_difference, read_whole
from fresco_trt.models.registry import family_of, model_facts, model_names
from fresco_trt.models.weights import bundled_folder, components_folder

TRANSFORMER = "transformer"


def siblings(model: str) -> tuple[str, ...]:
    """The packaged models that ship as a transformer over the parts of ``model``.

    What they draw from one prompt and seed can be compared: encoders and decoder are the same.
    """
    whole = bundled_folder(model)
    names = (name for name in model_names() if name != model)
    return tuple(name for name in names if components_folder(bundled_folder(name)) == whole)


def whole_folder(folder: Path) -> Path:
    """``folder``, or for one that shares another's parts, a folder that holds both; with the
    transformer's weights in full, where they are stored as a difference.

    The latter lies in :func:`fresco_trt.files.cache_folder.cache_folder`, under the folder's name
    and the digest of its contents; one that was damaged there is replaced. Raises WeightsNotFound
    for a wrong ``shares.json``, FileMissing for parts that are not there, OutputNotWritable and
    DiskFull.
    """
    parts = components_folder(folder)
    if holds_difference(folder / TRANSFORMER):
        with TemporaryDirectory() as passing:
            own = Path(passing) / folder.name
            _write_plain(folder / TRANSFORMER, own / TRANSFORMER)
            return _put_together(own, parts)
    return folder if parts == folder else _put_together(folder, parts)


def _put_together(folder: Path, parts: Path) -> Path:
    """The kept folder with the transformer of ``folder`` and the components of ``parts``."""
    names = family_of(model_facts(parts.name)).components.names
    digest = _digest(folder, parts, names)
    target = cache_folder() / "pretrained" / f"{folder.name}-{digest[:16]}"

    def is_whole() -> bool:
        try:
            return _digest(target, target, names) == digest
        except FileMissing:
            return False

    if is_whole():
        return target
    with written_to(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        held = create_partial(target)
        try:
            _copy(folder, (TRANSFORMER,), held.folder)
            _copy(parts, names, held.folder)
            if not is_whole():  # of two processes at it, the second leaves what the first put there
                put_in_place(held, target)
        finally:
            remove(held.folder)
            held.release()
    return target


def _write_plain(stored: Path, out: Path) -> None:
    """A transformer's folder with its weights in full, in place of a difference."""
    from safetensors.torch import save_file

    with written_to(out):
        out.mkdir(parents=True)
        shutil.copyfile(stored / "config.json", out / "config.json")
        save_file(read_whole(stored), out / WEIGHTS_NAME, metadata={"format": "pt"})


def _digest(folder: Path, parts: Path, names: tuple[str, ...]) -> str:
    """SHA-256 over the contents of a transformer and of the components around it."""
    both = folder_digest(folder, (TRANSFORMER,)), folder_digest(parts, names)
    return hashlib.sha256("\n".join(both).encode()).hexdigest()


def _copy(source: Path, names: tuple[str, ...], out: Path) -> None:
    for name, _ in walk(source, parts=names, links=True):
        copied = out / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, copied)
