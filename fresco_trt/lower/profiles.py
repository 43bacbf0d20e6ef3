"""One graph for several token counts: which of its dimensions vary, and how they hang together.

Beside ``export.py``, which traces such a graph with these dimensions open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from fresco_trt.plan.signature import GraphSignature, TensorSpec

Varying: TypeAlias = Mapping[str, Mapping[int, int]]
"""By tensor, the axes that vary, each with what it is longer than the count that varies."""


def varying(signatures: Sequence[GraphSignature]) -> Varying:
    """The dimensions in which signatures of the same tensors differ; nothing for fewer than two.

    All are one count plus a constant: for a stage graph the image tokens, and those plus the text
    tokens. Raises ValueError for other tensors, and for dimensions that vary apart.
    """
    columns = _columns([_tensors(signature) for signature in signatures])
    found: dict[str, dict[int, int]] = {}
    for (name, axis), sizes in columns.items():
        offsets = {one - other for one, other in zip(sizes, min(columns.values()), strict=True)}
        if len(offsets) > 1:
            raise ValueError(f"{name} has {sizes} along axis {axis}, which no one count explains")
        found.setdefault(name, {})[axis] = offsets.pop()
    return found


def counts(signatures: Sequence[GraphSignature], varies: Varying) -> list[int]:
    """The count that varies, of each signature."""
    name, axes = next(iter(varies.items()))
    axis, offset = next(iter(axes.items()))
    shapes = ({spec.name: spec.shape for spec in _tensors(each)} for each in signatures)
    return [shape[name][axis] - offset for shape in shapes]


def _tensors(signature: GraphSignature) -> tuple[TensorSpec, ...]:
    return (*signature.inputs, *signature.outputs)


def _columns(tensors: list[tuple[TensorSpec, ...]]) -> dict[tuple[str, int], tuple[int, ...]]:
    """The sizes of every dimension that is not the same in all, by name and axis."""
    kinds = {tuple((spec.name, spec.dtype, len(spec.shape)) for spec in each) for each in tensors}
    if len(kinds) > 1:
        raise ValueError(f"signatures of other tensors: {sorted(map(str, kinds))}")
    return {
        (specs[0].name, axis): sizes
        for specs in zip(*tensors, strict=True)
        for axis, sizes in enumerate(zip(*(spec.shape for spec in specs), strict=True))
        if len(set(sizes)) > 1
    }
