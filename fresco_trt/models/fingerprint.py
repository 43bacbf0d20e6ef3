"""A fingerprint of weights: whether tensors still are what they were when an engine was made.

Beside the data path: whoever holds engines that have weights built in asks this before each call.
Bookkeeping comes first, and costs least: the same tensors, in the same memory, read in the same
way, not written to as far as torch counts. What torch does not count are writes through
``weight.data``, a NumPy view or a library of C++, among them every fused or hot-swapped LoRA and
the weights of an EMA. So a sample of the values themselves is compared as well.

The sample is a tensor of up to ``LINES * LENGTH`` elements whole, and of a larger one ``LINES``
runs of ``LENGTH`` elements, evenly spread from its first element on. What it sees:

- a write to a whole tensor, of any size, unless rounding left each sampled element as it was;
- a write to a share p of a larger tensor: it is missed with probability ``(1 - p) ** 512`` where
  single elements are scattered (1%: 0.6%), and ``(1 - p) ** 32`` where they are whole rows, for
  each tensor that was written to.

What it cannot see is an uncounted write to a few elements of a large tensor. Only a digest of every
byte does (:func:`fresco_trt.models.weights.tensors_digest`). Whoever is told here that the weights
may be others takes that digest, which decides: a false alarm, such as weights that were moved to
another device, costs time and nothing else.

All samples of a device are taken with a few kernels, and compared with one synchronisation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from weakref import ref

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LINES = 32
"""Runs of elements that are looked at in a tensor."""
LENGTH = 16
"""Elements of a run: a line of a CPU's cache, in float32."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fingerprint:
    """Tensors as they were. They are held weakly; of their values, the sample is held."""

    tensors: tuple[_Known, ...]
    samples: Mapping[torch.device, Tensor]

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Self:
        """The fingerprint of ``tensors`` now."""
        given = tuple(tensors)
        return cls(tensors=tuple(map(_Known.of, given)), samples=_samples(given))

    def hold(self, tensors: Iterable[Tensor]) -> bool:
        """Whether ``tensors`` are the same ones, in the same order, with the same content, as far
        as the sample shows.
        """
        given = tuple(tensors)
        return (
            len(given) == len(self.tensors)
            and all(known.is_(each) for known, each in zip(self.tensors, given, strict=True))
            and self._sampled(given)
        )

    @property
    def alive(self) -> bool:
        """Whether every tensor still exists; otherwise this can never hold again."""
        return all(known.tensor() is not None for known in self.tensors)

    def _sampled(self, given: Sequence[Tensor]) -> bool:
        now = _samples(given)
        return all(now[place].equal(sample) for place, sample in self.samples.items())


def version(tensor: Tensor) -> int:
    """How often a tensor was written to; 0 for those made in inference mode, which do not count."""
    return 0 if tensor.is_inference() else tensor._version


# --- bookkeeping ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Known:
    """One tensor: itself, where its data is and how it is read, and its version."""

    tensor: ref[Tensor]
    place: tuple[object, ...]
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        return cls(tensor=ref(tensor), place=_place(tensor), version=version(tensor))

    def is_(self, other: Tensor) -> bool:
        return (
            self.tensor() is other
            and self.version == version(other)
            and self.place == _place(other)
        )


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Address, sizes and strides of the data; nothing for a tensor that is several, or has none."""
    try:
        return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
    except RuntimeError:
        return ()


# --- the sample -------------------------------------------------------------------------------


def _samples(tensors: Sequence[Tensor]) -> dict[torch.device, Tensor]:
    """The sampled elements of plain tensors as bytes, on the device where each tensor is.

    Of other tensors (quantised ones, those without memory) there is none: their data are several
    tensors, which bookkeeping alone watches.
    """
    import torch

    short: dict[_Kind, list[Tensor]] = {}
    long: dict[_Kind, list[Tensor]] = {}
    found: dict[torch.device, list[Tensor]] = {}
    with torch.no_grad():
        for tensor in filter(_is_plain, tensors):
            few = (span := _span(tensor)) <= LINES * LENGTH
            kind = tensor.device, tensor.dtype
            (short if few else long).setdefault(kind, []).append(_lines(tensor, span))
        for (device, _), lines in (*short.items(), *long.items()):
            # As they lie in memory: a NaN is equal to itself, and 0 is not -0.
            joined = torch.cat(lines).reshape(-1).view(torch.uint8)
            found.setdefault(device, []).append(joined)
        return {device: torch.cat(parts) for device, parts in found.items()}


_Kind = tuple["torch.device", "torch.dtype"]


def _lines(tensor: Tensor, span: int) -> Tensor:
    """A view [n] of all of ``span`` elements, or [LINES,LENGTH] of the sampled ones."""
    if span <= LINES * LENGTH:
        return tensor.as_strided((span,), (1,))
    return tensor.as_strided((LINES, LENGTH), ((span - LENGTH) // (LINES - 1), 1))


def _span(tensor: Tensor) -> int:
    """How many elements lie from the first to the last one: with gaps, more than there are."""
    if tensor.is_contiguous():
        return tensor.numel()
    if not tensor.numel():
        return 0
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in pairs)


def _is_plain(tensor: Tensor) -> bool:
    import torch

    kind = type(tensor)
    plain = kind is torch.nn.Parameter or kind is torch.Tensor
    return plain and tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized)
