"""Quantising nodes put into a graph: constants, codes and what they decode to, each with its name.

What ``quantize.py`` puts before a linear layer's product, and ``attention.py`` before attention's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir

    from fresco_trt.plan.recipes import Recipe

    Array = npt.NDArray[Any]

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

TINY = 1e-12
"""Stands in for the range of what is always zero: any scale will do, but none may be zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place in ``graph``: just before a node. What is put there is named after ``path`` and has
    ``dtype``, but for the codes of ``recipe``.
    """

    graph: ir.Graph
    before: ir.Node
    path: str
    dtype: np.dtype[Any]
    recipe: Recipe

    def rounded(self, name: str, source: ir.Value, scale: float) -> ir.Value:
        """``source`` rounded to codes of one ``scale`` and back."""
        import numpy as np

        unit = self.constant(f"{name}.scale", np.asarray(scale, self.dtype))
        zero = self.constant(f"{name}.zero", self.zeros(()))
        codes = self.node(
            QUANTIZE, f"{name}.Q", [source, unit, zero], source, kind=self._code_type()
        )
        return self.node(DEQUANTIZE, f"{name}.DQ", [codes, unit, zero], source)

    def node(
        self,
        operator: str,
        name: str,
        operands: list[Any],
        like: ir.Value,
        *,
        kind: ir.DataType | None = None,
        attributes: Any = (),
    ) -> ir.Value:
        """The output of a new node, with the shape of ``like`` and the site's dtype or ``kind``."""
        import onnx_ir as ir

        title = f"{self.path}.{name}"
        dtype = ir.DataType.from_numpy(self.dtype) if kind is None else kind
        output = ir.Value(name=title, shape=like.shape, type=ir.TensorType(dtype))
        node = ir.Node("", operator, operands, attributes, outputs=[output], name=title)
        self.graph.insert_before(self.before, node)
        return output

    def constant(self, name: str, values: Array) -> ir.Value:
        """A new constant of the graph."""
        import onnx_ir as ir

        title = f"{self.path}.{name}"
        tensor = ir.tensor(values, name=title)
        value = ir.Value(
            name=title,
            shape=ir.Shape(values.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Codes of zero."""
        import numpy as np

        return np.zeros(shape, self._code_type().numpy())

    def _code_type(self) -> ir.DataType:
        import onnx_ir as ir

        kinds = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
        return kinds[self.recipe.precision]
