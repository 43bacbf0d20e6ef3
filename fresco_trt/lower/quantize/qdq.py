"""Q/DQ in a stage graph: the exported linear layers, quantised by measured amax.

One more pass of the export, before weights are moved to their file: codes are then stored once for
all stages, like any other constant. Around a layer's matrix product it puts
``x -> QuantizeLinear -> DequantizeLinear`` and, in place of the weight, ``codes ->
DequantizeLinear``; engine libraries fuse the three into one product of that precision. The nodes
are placed here because the exporter of nvidia-modelopt traces with TorchScript, which has no RMS
norm; every number in them is modelopt's. Attention's products, where they have amax, are left to
``attention.py``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import ExportError
from fresco_trt.lower.quantize.attention import quantise_attention
from fresco_trt.lower.quantize.nodes import DEQUANTIZE, TINY, Site

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir
    from torch import Tensor

    from fresco_trt.bundle.amax import Amax, LayerAmax
    from fresco_trt.lower.weights import WeightFile
    from fresco_trt.plan.recipes import Recipe

    Array = npt.NDArray[Any]

_SUFFIX = ".weight.T"


@dataclass(slots=True, kw_only=True)
class Account:
    """What quantising did: matrix products of each graph by precision, and bytes of each weight.

    ``stored`` and ``float32`` are the bytes of a layer's codes and scales, and of its weight as
    float32, by the layer's path.
    """

    products: dict[str, Counter[str]] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    float32: dict[str, int] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Bytes stored over those of the same weights in float32."""
        return sum(self.stored.values()) / sum(self.float32.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """A pass over one graph after another, by the same amax. See the file's docstring."""

    recipe: Recipe
    amax: Amax
    account: Account = field(default_factory=Account)

    def quantise(self, model: ir.Model, weights: WeightFile) -> None:
        """Quantise in place. Raises ExportError for a layer or an attention whose products are not
        found, ValueError for a recipe whose inputs are scaled token by token.
        """
        if self.recipe.tokens:
            raise ValueError(f"{self.recipe.name} scales tokens; graphs have one scale for all")
        done: dict[tuple[str, bytes], ir.Value] = {}
        for node in list(model.graph):
            product = self._product(model.graph, node)
            if product is not None:
                self._exchange(product, done)
        self._check(model.graph)
        quantise_attention(model.graph, self.amax.attention, self.recipe)
        self.account.products[str(model.graph.name)] = self._products(model.graph)

    def _product(self, graph: ir.Graph, node: ir.Node) -> _Product | None:
        """The node as a product to be quantised, if it is one."""
        if node.op_type != "MatMul":
            return None
        source, weight = node.inputs[:2]
        layer = str(weight.name).removesuffix(_SUFFIX) if weight is not None else ""
        if source is None or weight is None or weight.const_value is None:
            return None
        if str(weight.name) != f"{layer}{_SUFFIX}" or layer not in self.amax.layers:
            return None
        return _Product(
            graph=graph,
            node=node,
            layer=layer,
            found=self.amax.layers[layer],
            recipe=self.recipe,
            source=source,
            weight=weight,
            values=weight.const_value.numpy(),
        )

    def _exchange(self, product: _Product, done: dict[tuple[str, bytes], ir.Value]) -> None:
        key = (str(product.source.name), product.identity)
        if key not in done:  # query, key and value read the same tokens: round them once
            done[key] = product.rounded()
        codes, scales = encode(product.values, product.found, self.recipe)
        product.node.replace_input_with(0, done[key])
        product.node.replace_input_with(1, product.decoded(codes, scales))
        del product.graph.initializers[str(product.weight.name)]
        self.account.stored[product.layer] = codes.nbytes + scales.nbytes
        self.account.float32[product.layer] = codes.size * 4

    def _check(self, graph: ir.Graph) -> None:
        left = [name for name in self.amax.layers if f"{name}{_SUFFIX}" in graph.initializers]
        left += [name for name in self.amax.layers if f"{name}.weight" in graph.initializers]
        if left:
            raise ExportError(
                f"no matrix product of {', '.join(left)} was found in the graph",
                expected="one for each layer that has amax",
                fix="keep these layers with keep in --precision, and report the model",
            )

    def _products(self, graph: ir.Graph) -> Counter[str]:
        """Matrix products with both operands dequantised, and all others."""
        kinds: Counter[str] = Counter()
        for node in graph:
            if node.op_type in ("MatMul", "Gemm"):
                makers = [value.producer() for value in node.inputs[:2] if value is not None]
                codes = all(maker is not None and maker.op_type == DEQUANTIZE for maker in makers)
                kinds[self.recipe.precision if codes else "float"] += 1
        return kinds


def input_scale(found: LayerAmax, recipe: Recipe) -> float:
    """Scale of the codes of a layer's input: one for all stages, so that they share the rest."""
    return max(float(found.input.max()), TINY) / recipe.top


def weight_scale(found: LayerAmax, recipe: Recipe) -> Tensor:
    """Scales of the codes of a layer's weight: float32 [out], or [] for one of all."""
    return found.weight.clamp(min=TINY) / recipe.top


def encode(weight: Array, found: LayerAmax, recipe: Recipe) -> tuple[Array, Array]:
    """Codes [in,out] and scales [out] or [] of a weight [in,out], smoothed first if it is to be.

    Scales have the weight's dtype, and codes are made with the scales as they are stored.
    """
    import numpy as np

    scales: Array = weight_scale(found, recipe).numpy().astype(weight.dtype)
    values = weight.astype(np.float32)
    if found.smooth is not None:
        values = values / found.smooth.numpy()[:, None]
    units = (values / scales.astype(np.float32)).astype(np.float32, copy=False)
    return _codes(units, recipe), scales


def _codes(values: npt.NDArray[np.float32], recipe: Recipe) -> Array:
    """Nearest codes of values in units of their scale; halves to even, the rest saturates."""
    import numpy as np

    bounded = np.clip(values, -recipe.top, recipe.top)
    if recipe.precision == "int8":
        return np.rint(bounded).astype(np.int8)
    import ml_dtypes

    return bounded.astype(ml_dtypes.float8_e4m3fn)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """A layer's matrix product of ``source`` and ``weight``, and the nodes put before it.

    ``values`` [in,out] are the weight's; constants get its dtype, and the layer's name.
    """

    graph: ir.Graph
    node: ir.Node
    layer: str
    found: LayerAmax
    recipe: Recipe
    source: ir.Value
    weight: ir.Value
    values: Array

    @property
    def scale(self) -> float:
        """Of the input's codes."""
        return input_scale(self.found, self.recipe)

    @property
    def identity(self) -> bytes:
        """Equal for products that would round an input alike."""
        smooth = self.found.smooth
        return repr(self.scale).encode() + (b"" if smooth is None else smooth.numpy().tobytes())

    def rounded(self) -> ir.Value:
        """The input, smoothed if it is to be, rounded to codes and back."""
        source, smooth, site = self.source, self.found.smooth, self._site
        if smooth is not None:
            factors = site.constant("input.smooth", smooth.numpy().astype(self.values.dtype))
            source = site.node("Mul", "input.Smooth", [source, factors], source)
        return site.rounded("input", source, self.scale)

    def decoded(self, codes: Array, scales: Array) -> ir.Value:
        """The weight from its codes [in,out]; a scale for each column, or one for all."""
        import onnx_ir as ir

        site = self._site
        operands = [
            site.constant("weight.codes", codes),
            site.constant("weight.scale", scales),
            site.constant("weight.zero", site.zeros(scales.shape)),
        ]
        axis = [ir.AttrInt64("axis", 1)] if scales.ndim else []
        return site.node(DEQUANTIZE, "weight.DQ", operands, self.weight, attributes=axis)

    @property
    def _site(self) -> Site:
        return Site(
            graph=self.graph,
            before=self.node,
            path=self.layer,
            dtype=self.values.dtype,
            recipe=self.recipe,
        )
