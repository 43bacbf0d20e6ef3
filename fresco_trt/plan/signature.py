"""What an engine takes and returns: names, dtypes and static shapes.

Written when a graph is lowered, stored in the bundle, and checked at every engine call.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fresco_trt.errors import InvalidPlan
from fresco_trt.plan.reading import choice, items, record, text, whole

DTYPES = (
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "int64",
    "int32",
    "int8",
    "uint8",
    "bool",
)

TEXT_BIAS = "text_bias"
"""The engine input [B,T] that is added to what attention scores a text token with: 0 for a prompt's
own tokens, unless the stage amplifies the text, and -10,000 for the padding behind them."""

_FIX = "build the bundle again with `fresco-trt build`"


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One named tensor: ``dtype`` as torch spells it, every dimension a positive integer.

    Raises InvalidPlan for an empty name, an unknown dtype or a dimension that is not static.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.name:
            raise _invalid("a tensor without a name", "a name")
        if self.dtype not in DTYPES:
            raise _invalid(
                f"tensor {self.name} of dtype {self.dtype}", f"one of {', '.join(DTYPES)}"
            )
        if not all(_is_static(size) for size in self.shape):
            raise _invalid(f"tensor {self.name} of shape {self.shape}", "positive whole dimensions")

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{','.join(str(size) for size in self.shape)}]"

    def to_json(self) -> dict[str, object]:
        """``{name, dtype, shape}``."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, value: object) -> TensorSpec:
        """Inverse of :meth:`to_json`. Raises InvalidPlan."""
        found = record(value, ("name", "dtype", "shape"), "tensor")
        name = text(found["name"], "tensor name")
        shape = items(found["shape"], f"shape of {name}")
        return cls(
            name=name,
            dtype=choice(found["dtype"], DTYPES, f"dtype of {name}"),
            shape=tuple(whole(size, f"dimension of {name}") for size in shape),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphSignature:
    """Inputs and outputs in call order. A name occurs once among all of them. ``key_blocks`` is how
    many blocks of the image's keys each block of queries attends to, None for all of them.

    Raises InvalidPlan for a repeated name, a side with no tensor or a count below 1.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    key_blocks: int | None = None

    def __post_init__(self) -> None:
        if not self.inputs or not self.outputs:
            raise _invalid("a graph with no inputs or no outputs", "at least one of each")
        names = [spec.name for spec in (*self.inputs, *self.outputs)]
        repeated = sorted(name for name, times in Counter(names).items() if times > 1)
        if repeated:
            raise _invalid(f"a graph that repeats {', '.join(repeated)}", "each name once")
        if self.key_blocks is not None and not _is_static(self.key_blocks):
            raise _invalid(f"a graph of {self.key_blocks} key_blocks", "1 or more, or no such key")

    def input(self, name: str) -> TensorSpec:
        """The input called ``name``. Raises KeyError that lists the inputs."""
        return _find(self.inputs, name)

    def output(self, name: str) -> TensorSpec:
        """The output called ``name``. Raises KeyError that lists the outputs."""
        return _find(self.outputs, name)

    def to_json(self) -> dict[str, object]:
        """``{inputs: [...], outputs: [...]}``, and ``key_blocks`` where there is a count."""
        return {
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            **({} if self.key_blocks is None else {"key_blocks": self.key_blocks}),
        }

    @classmethod
    def from_json(cls, value: object) -> GraphSignature:
        """Inverse of :meth:`to_json`. Raises InvalidPlan."""
        found = record(value, ("inputs", "outputs"), "signature", ("key_blocks",))
        return cls(
            inputs=tuple(TensorSpec.from_json(spec) for spec in items(found["inputs"], "inputs")),
            outputs=tuple(
                TensorSpec.from_json(spec) for spec in items(found["outputs"], "outputs")
            ),
            key_blocks=(
                whole(found["key_blocks"], "key_blocks") if "key_blocks" in found else None
            ),
        )


def _is_static(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size > 0


def _find(specs: tuple[TensorSpec, ...], name: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise KeyError(f"{name} is none of {', '.join(spec.name for spec in specs)}")


def _invalid(given: str, expected: str) -> InvalidPlan:
    return InvalidPlan(given, expected=expected, fix=_FIX)
