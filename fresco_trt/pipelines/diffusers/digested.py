"""Which weights a pipeline's transformer has, asked before each call that depends on them.

Under :mod:`fresco_trt.pipelines.diffusers.sources`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.models.fingerprint import Fingerprint

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


@dataclass(slots=True, kw_only=True, eq=False)
class DigestedWeights:
    """The SHA-256 of a transformer's weights, taken again only when they may be others."""

    sha256: str
    fingerprint: Fingerprint

    @classmethod
    def of(cls, transformer: Module) -> Self:
        """Those it has now. Raises IncompatibleOptions for weights that are no plain numbers."""
        from fresco_trt.models.weights import weights_digest

        _check_plain(transformer)
        # The fingerprint first: what is written meanwhile is then seen at the next call.
        fingerprint = Fingerprint.of(_weights(transformer))
        return cls(sha256=weights_digest(transformer), fingerprint=fingerprint)

    def now(self, transformer: Module) -> str:
        """The digest of the weights that a transformer, which may be another one, has now."""
        if not self.fingerprint.hold(_weights(transformer)):
            found = self.of(transformer)
            self.sha256, self.fingerprint = found.sha256, found.fingerprint
        return self.sha256


def _check_plain(transformer: Module) -> None:
    """Raise IncompatibleOptions for weights whose digest nothing else can have: those that torchao
    and others hold as several tensors, and those that are not in memory.
    """
    from torch import Tensor
    from torch.nn import Parameter

    for name, weight in transformer.state_dict(keep_vars=True).items():
        if type(weight) not in (Tensor, Parameter) or weight.is_meta:
            held = "no data" if weight.is_meta else f"a {type(weight).__name__}"
            raise IncompatibleOptions(
                f"a transformer whose {name} holds {held}",
                expected="plain tensors: engines and bases are those of exactly these weights",
                fix="load the transformer unquantised, or leave engines and basis out",
            )


def modules_of(module: Module) -> Iterator[Module]:
    """A module and all that it holds, as often as it holds them: in a fifth of the time that
    ``modules()``, which makes their names, takes.
    """
    left = [module]
    while left:
        found = left.pop()
        yield found
        left.extend(each for each in found._modules.values() if each is not None)


def _weights(transformer: Module) -> list[Tensor]:
    """Every parameter and buffer, always in the same order."""
    found: list[Tensor | None] = []
    for module in modules_of(transformer):
        found.extend(module._parameters.values())
        found.extend(module._buffers.values())
    return [each for each in found if each is not None]
