"""Which tensors these were, and whether any of them was written to since.

Beside the data path: whoever holds engines that have weights built in asks this before a call, in
a hundredth of the time that a digest takes. What it sees: another tensor in a weight's place,
another memory, an in-place write. What nothing in torch can see: a write through ``weight.data``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from weakref import ref

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorVersions:
    """Tensors as they were: themselves, held weakly, where their data is, and its version."""

    versions: tuple[tuple[ref[Tensor], int, int], ...]

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Self:
        """The versions of ``tensors`` now."""
        return cls(versions=tuple((ref(each), _place(each), version(each)) for each in tensors))

    def hold(self, tensors: Iterable[Tensor]) -> bool:
        """Whether ``tensors`` are the same ones, in the same order, with the same content."""
        given = tuple(tensors)
        return len(given) == len(self.versions) and all(
            weak() is each and place == _place(each) and written == version(each)
            for (weak, place, written), each in zip(self.versions, given, strict=True)
        )

    @property
    def alive(self) -> bool:
        """Whether every tensor still exists; otherwise these versions can never hold again."""
        return all(weak() is not None for weak, _, _ in self.versions)


def _place(tensor: Tensor) -> int:
    """The address of the data; 0 for a tensor that is several, or has none."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


def version(tensor: Tensor) -> int:
    """How often a tensor was written to; 0 for those made in inference mode, which do not count."""
    return 0 if tensor.is_inference() else tensor._version
