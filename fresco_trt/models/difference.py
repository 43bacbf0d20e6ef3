"""A transformer that ships as its difference to another packaged model's: half its size or less.

Beside ``checkpoint.py`` in the data path. A transformer's folder has ``difference.safetensors``,
whose metadata names the packaged model: ``{"of": "flux-tiny"}``. Every tensor has the name and the
shape of that model's. A matrix is whole numbers of 8 or of 4 bits, with a step for each row beside
it (``.step``); two of 4 bits share a byte of the type uint8, the first in its lower half, 8 added
to each. Anything else is the float16 difference itself. Or every matrix has two float16 factors
instead (``.down`` [r,columns] and ``.up`` [rows,r], whose product is its change), and nothing else
changes. What is read is plain weights, in the other model's own dtype, and the same to the bit
everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fresco_trt.errors import WeightsNotFound
from fresco_trt.models.checkpoint import WEIGHTS_NAME, check_plain, read_weights
from fresco_trt.models.weights import bundled_folder, name_differences

if TYPE_CHECKING:
    from torch import Tensor

    Rounding = Callable[[str, Tensor, int], tuple[Tensor, Tensor]]
    """From a matrix's name, its change [R,C] and the largest code: codes [R,C] from minus that one
    to it, and the step of each row [R,1]."""

DIFFERENCE_NAME = "difference.safetensors"
_STEP = ".step"
_DOWN, _UP = ".down", ".up"
_ZERO = 8
"""What is added to codes of 4 bits, for bytes have no sign."""

_TOP = 127
"""The largest code of 8 bits."""

_CLIPPED = [share / 20 for share in range(20, 5, -1)]
"""Shares of a row's largest change that its codes of 4 bits may reach to: what is beyond is cut
off, and the step of all others is finer."""


def holds_difference(source: Path) -> bool:
    """Whether a transformer's folder has its difference to another model's, and no weights."""
    return (source / DIFFERENCE_NAME).exists() and not (source / WEIGHTS_NAME).exists()


def read_whole(source: Path) -> dict[str, Tensor]:
    """The weights of a transformer's folder or file, a stored difference added to what it is of.

    Raises as :func:`~fresco_trt.models.checkpoint.read_weights`, and WeightsNotFound for a
    difference of what does not ship, or with other tensors.
    """
    if not holds_difference(source):
        return read_weights(source)
    file = source / DIFFERENCE_NAME
    of = _model_of(file)
    base = bundled_folder(of) / "transformer"
    if not base.is_dir() or holds_difference(base):
        raise _wrong(f"{file} is of {of!r}, no model that ships with its weights in full")
    return added(read_weights(base), read_weights(file), f"{file}, of {of},")


def nearest(name: str, change: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The codes nearest to a change, with the best step for each row."""
    step = best_step(change, top)
    return _codes(change, step, top), step


def coded(
    weights: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    bits: Literal[4, 8] = 8,
    rounding: Rounding = nearest,
) -> dict[str, Tensor]:
    """The difference of ``weights`` to ``base``, as it is stored.

    Raises ValueError for 4 bits and a matrix with an odd number of columns.
    """
    import torch

    stored: dict[str, Tensor] = {}
    for name, old in base.items():
        change = weights[name].float() - old.float()
        if change.ndim != 2:
            stored[name] = change.half()
            continue
        if bits == 4 and change.shape[1] % 2:
            raise ValueError(f"{name} has {change.shape[1]} columns; expected pairs of them")
        codes, step = rounding(name, change, 2 ** (bits - 1) - 1)
        stored[name + _STEP] = step
        if bits == 8:
            stored[name] = codes.to(torch.int8)
        else:
            pairs = (codes + _ZERO).to(torch.uint8)
            stored[name] = pairs[:, ::2] | (pairs[:, 1::2] << 4)
    return stored


def best_step(change: Tensor, top: int, weight: Tensor | float = 1.0) -> Tensor:
    """The step of each row [R,1] of a change [R,C] whose squared error is least, of those that
    reach to the row's largest and, where codes end at less than 8 bits' ``top``, of some that cut
    it off. ``weight`` [C] is how much a column counts.
    """
    import torch

    largest = change.abs().amax(1, keepdim=True)
    step, least = largest / top, torch.full_like(largest, torch.inf)
    for share in _CLIPPED if top < _TOP else [1.0]:
        tried = largest * share / top
        error = (_codes(change, tried, top) * tried - change).square() * weight
        step = torch.where(error.sum(1, keepdim=True) < least, tried, step)
        least = torch.minimum(least, error.sum(1, keepdim=True))
    return step


def _codes(change: Tensor, step: Tensor, top: int) -> Tensor:
    import torch

    safe = step.clamp(min=torch.finfo(torch.float32).tiny)
    return (change / safe).round().clamp(-top, top)


def low_rank(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """A difference as it is stored, of each matrix's factors down [r,columns] and up [rows,r]."""
    return {
        name + suffix: factor.detach().half().cpu().contiguous()
        for name, pair in factors.items()
        for suffix, factor in zip((_DOWN, _UP), pair, strict=True)
    }


def added(
    base: Mapping[str, Tensor], stored: Mapping[str, Tensor], what: str = "a difference"
) -> dict[str, Tensor]:
    """``base`` with a difference as :func:`coded` or :func:`low_rank` gives it. Raises
    WeightsNotFound for tensors of other names or shapes, which ``what`` are.
    """
    matrices = {name for name, value in base.items() if value.ndim == 2}
    if any(name.endswith(_UP) for name in stored):
        return dict(base) | _multiplied({name: base[name] for name in matrices}, stored, what)
    wanted = base.keys() | {name + _STEP for name in matrices}
    problems = name_differences(stored.keys(), wanted) or [
        f"{name} has shape {tuple(stored[name].shape)} where {tuple(value.shape)} is wanted"
        for name, value in base.items()
        if _shape(stored[name]) != value.shape
    ]
    if problems:
        raise _wrong(f"{what} {'; '.join(problems[:2])}")
    found = {}
    for name, old in base.items():
        change = _unpacked(stored[name]).float()
        if name in matrices:
            change = change * stored[name + _STEP].float()
        found[name] = (old.float() + change).to(old.dtype)
    return found


def _multiplied(
    matrices: Mapping[str, Tensor], stored: Mapping[str, Tensor], what: str
) -> dict[str, Tensor]:
    """Matrices and the products of their factors."""
    wanted = {name + suffix for name in matrices for suffix in (_DOWN, _UP)}
    problems = name_differences(stored.keys(), wanted) or [
        f"{name} has factors of shapes {tuple(up.shape)} and {tuple(down.shape)} where "
        f"{tuple(old.shape)} is wanted"
        for name, old in matrices.items()
        for up, down in [(stored[name + _UP], stored[name + _DOWN])]
        if up.ndim != 2
        or down.ndim != 2
        or (*old.shape, up.shape[1]) != (up.shape[0], down.shape[1], down.shape[0])
    ]
    if problems:
        raise _wrong(f"{what} {'; '.join(problems[:2])}")
    found = {}
    for name, old in matrices.items():
        # In doubles the sums are exact, so the order in which a machine adds does not show.
        change = stored[name + _UP].double() @ stored[name + _DOWN].double()
        found[name] = (old.double() + change).to(old.dtype)
    return found


def _shape(codes: Tensor) -> tuple[int, ...]:
    """Of the weights that some codes are of."""
    import torch

    *others, columns = codes.shape
    return (*others, 2 * columns if codes.dtype == torch.uint8 else columns)


def _unpacked(codes: Tensor) -> Tensor:
    """Codes of 4 bits one by one, and anything else as it is."""
    import torch

    if codes.dtype != torch.uint8:
        return codes
    return torch.stack([codes & 15, codes >> 4], -1).flatten(-2).to(torch.int8) - _ZERO


def _model_of(file: Path) -> str:
    from safetensors import SafetensorError, safe_open

    untyped: Any = safe_open
    check_plain(file)
    try:
        with untyped(file, framework="pt") as opened:
            told = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _wrong(f"{file} cannot be read ({error})") from error
    if "of" not in told:
        raise _wrong(f"{file} does not say of which model it is")
    return str(told["of"])


def _wrong(given: str) -> WeightsNotFound:
    return WeightsNotFound(
        given,
        expected="the difference to the transformer of a packaged model, which its metadata names",
        fix="install the package again, or pass --weights of a transformer that is stored in full",
    )
