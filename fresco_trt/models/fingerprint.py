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
from typing import TYPE_CHECKING, Self, TypeAlias
from weakref import ref

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LINES = 32
"""Runs of elements that are looked at in a tensor."""
LENGTH = 16
"""Elements of a run: a line of a CPU's cache, in float32."""


Kind: TypeAlias = "tuple[torch.device, torch.dtype, int]"
"""What sampled elements are put together by: device, dtype, and how many dimensions they have."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fingerprint:
    """Tensors as they were. They are held weakly; of their values, the sample is held."""

    tensors: tuple[_Known, ...]
    samples: Mapping[torch.device, Tensor]

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Self:
        """The fingerprint of ``tensors`` now."""
        given = tuple(tensors)
        known = tuple(map(_Known.of, given))
        return cls(tensors=known, samples=_samples(known, given))

    def hold(self, tensors: Iterable[Tensor]) -> bool:
        """Whether ``tensors`` are the same ones, in the same order, with the same content, as far
        as the sample shows.
        """
        given = tuple(tensors)
        if len(given) != len(self.tensors):
            return False
        for known, each in zip(self.tensors, given, strict=True):
            if not known.is_(each):
                return False
        now = _samples(self.tensors, given)
        return all(now[device].equal(sample) for device, sample in self.samples.items())

    @property
    def alive(self) -> bool:
        """Whether every tensor still exists; otherwise this can never hold again."""
        return all(known.tensor() is not None for known in self.tensors)


def version(tensor: Tensor) -> int:
    """How often a tensor was written to; 0 for those made in inference mode, which do not count."""
    return 0 if tensor.is_inference() else tensor._version


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Known:
    """One tensor: itself, where its data is and how it is read, its version, and the sizes and
    strides of what is sampled of it; ``kind`` is None where that is nothing.
    """

    tensor: ref[Tensor]
    place: tuple[object, ...]
    version: int
    kind: Kind | None
    sizes: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """As it is now. Of tensors that are several in fact (quantised ones) and of those without
        memory there is no sample: bookkeeping alone watches them.
        """
        place, written = _place(tensor), version(tensor)
        if not _is_plain(tensor):
            return cls(tensor=ref(tensor), place=place, version=written, kind=None)
        span = _span(tensor)
        sizes: tuple[int, ...] = (span,)
        strides: tuple[int, ...] = (1,)
        if span > LINES * LENGTH:
            sizes, strides = (LINES, LENGTH), ((span - LENGTH) // (LINES - 1), 1)
        return cls(
            tensor=ref(tensor),
            place=place,
            version=written,
            kind=(tensor.device, tensor.dtype, len(sizes)),
            sizes=sizes,
            strides=strides,
        )

    def is_(self, other: Tensor) -> bool:
        """Whether it is the tensor as it was, by bookkeeping."""
        return (
            self.tensor() is other
            and self.version == version(other)
            and self.place == _place(other)
        )


def _samples(known: Sequence[_Known], tensors: Sequence[Tensor]) -> dict[torch.device, Tensor]:
    """The sampled elements as bytes, on the device where each tensor is."""
    import torch

    views: dict[Kind, list[Tensor]] = {}
    with torch.no_grad():
        for each, tensor in zip(known, tensors, strict=True):
            if each.kind is not None:
                view = tensor.as_strided(each.sizes, each.strides)
                views.setdefault(each.kind, []).append(view)
        found: dict[torch.device, list[Tensor]] = {}
        for (device, *_), group in views.items():
            # As they lie in memory: a NaN is equal to itself, and 0 is not -0.
            joined = torch.cat(group).reshape(-1).view(torch.uint8)
            found.setdefault(device, []).append(joined)
        return {device: torch.cat(parts) for device, parts in found.items()}


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Address, sizes and strides of the data; nothing for a tensor that is several, or has none."""
    try:
        return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
    except RuntimeError:
        return ()


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
