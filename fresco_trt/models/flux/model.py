"""The FLUX family: packing, positions, engine signature, weights.

Left of the export in the data path, and read again at request time for packing and positions.
Architecture: Black Forest Labs, FLUX.1 (2024), as in diffusers' ``FluxTransformer2DModel``; the
traced module itself is in ``flux_graph.py``. Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import IncompatibleOptions, InvalidPlan
from fresco_trt.models.flux.config import REPOSITORIES, check_config, transformer_config
from fresco_trt.models.weights import check_names, find_transformer, read_config, read_weights
from fresco_trt.plan.caching import FEATURES, CacheSite
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.grid import Grid
from fresco_trt.plan.signature import GraphSignature, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

    from fresco_trt.models.flux.blocks import Cut
    from fresco_trt.models.flux.graph import FullGraph
    from fresco_trt.plan.stages import Action, StagePlan

THETA = 10_000.0

COARSE_ROPE = ("rope_cos_coarse", "rope_sin_coarse")
"""Inputs that only the phase-aligned graphs have."""


# --- packing and positions --------------------------------------------------------------------


def pack(latents: Tensor) -> Tensor:
    """``latents`` [B,C,H,W] to tokens [B, H/2 * W/2, 4C]; channels ordered (c, dy, dx).

    Raises ValueError for an odd height or width.
    """
    batch, channels, height, width = latents.shape
    if height % 2 or width % 2:
        raise ValueError(f"latents are {height}x{width}; both sides must be even")
    cells = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * channels)


def unpack(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Inverse of :func:`pack`: tokens [B, rows*columns, 4C] to latents [B, C, 2 rows, 2 columns].

    Raises ValueError if the token or channel count does not fit.
    """
    batch, count, channels = tokens.shape
    if count != rows * columns or channels % 4:
        raise ValueError(f"tokens [{count},{channels}] are no {rows}x{columns} grid of 2x2 cells")
    cells = tokens.reshape(batch, rows, columns, channels // 4, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, 2 * rows, 2 * columns)


def position_ids(rows: int, columns: int) -> Tensor:
    """Positions (0, row, column) of a raster of tokens, float32 [rows*columns, 3]."""
    import torch

    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    ids = torch.stack([torch.zeros_like(row), row, column], dim=-1)
    return ids.reshape(-1, 3).to(torch.float32)


def rotary_tables(facts: ModelFacts, text_tokens: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cos and sin [T+N, head_dim], float32, of T text tokens at (0,0,0) and N image tokens.

    ``positions`` [N,3] may be fractional. Bit-equal to diffusers' ``FluxPosEmbed``: angles in
    float64, one frequency ``theta^(-2i/d)`` per pair of channels, cast to float32 at the end.
    Raises ValueError for positions of another shape.
    """
    import torch

    if positions.ndim != 2 or positions.shape[1] != len(facts.rope_axes):
        raise ValueError(f"positions {tuple(positions.shape)}; expected [N,{len(facts.rope_axes)}]")
    ids = positions.to(device="cpu", dtype=torch.float32)
    ids = torch.cat([torch.zeros(text_tokens, ids.shape[1]), ids])
    axes = zip(facts.rope_axes, ids.unbind(1), strict=True)
    angles = torch.cat([_angles(width, values) for width, values in axes], dim=1)
    return angles.cos().float(), angles.sin().float()


def _angles(width: int, values: Tensor) -> Tensor:
    """Angles of one axis, float64 [S, width], each repeated for its pair of channels."""
    import torch

    exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
    return torch.outer(values, 1.0 / THETA**exponents).repeat_interleave(2, dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class FluxLayout:
    """Packing and rotary tables of one FLUX model: a ``Layout`` of ``run/layout.py``."""

    facts: ModelFacts
    text_tokens: int

    def pack(self, latents: Tensor) -> Tensor:
        """As :func:`pack`."""
        return pack(latents)

    def unpack(self, tokens: Tensor, grid: Grid) -> Tensor:
        """As :func:`unpack`, for the rows and columns of ``grid``."""
        return unpack(tokens, grid.rows, grid.columns)

    def tables(self, grid: Grid) -> Mapping[str, Tensor]:
        """``rope_cos`` and ``rope_sin`` [T+N, head_dim], float32, of the raster of ``grid``."""
        return self.tables_at(position_ids(grid.rows, grid.columns))

    def tables_at(self, positions: Tensor) -> Mapping[str, Tensor]:
        """The same for tokens at any ``positions`` [N,3]; raises as :func:`rotary_tables`."""
        cos, sin = rotary_tables(self.facts, self.text_tokens, positions)
        return {"rope_cos": cos, "rope_sin": sin}


# --- graphs -----------------------------------------------------------------------------------


def full_signature(
    facts: ModelFacts,
    tokens: int,
    text_tokens: int,
    *,
    refined: int = 0,
    feature: bool = False,
    site: CacheSite = "final",
    batch: int = 1,
) -> GraphSignature:
    """Signature of the ``full`` graph for ``tokens`` image tokens; all float32.

    ``timestep`` is sigma and ``guidance`` the plain scale (neither times 1000); ``guidance`` is an
    input only of guidance-distilled models. With ``refined``, how many coarse tokens the last
    ``4 * refined`` are the children of, it is the phase-aligned variant's, which takes tables of
    the coarse frame too. Raises InvalidPlan for a count below one, or children beyond ``tokens``.
    """
    if refined and not 0 < 4 * refined <= tokens:
        given = f"{tokens} tokens, {refined} of them expanded to four"
        raise InvalidPlan(given, expected=f"from 0 to {tokens // 4}", fix="correct the plan")
    inputs = _full_inputs(facts, tokens, text_tokens, refined, batch)
    outputs = {"velocity": (batch, tokens, facts.in_channels)}
    if feature:
        outputs.setdefault(FEATURES[site], (batch, tokens, facts.hidden))
    return GraphSignature(inputs=_specs(inputs), outputs=_specs(outputs))


def _full_inputs(
    facts: ModelFacts, tokens: int, text_tokens: int, refined: int, batch: int
) -> dict[str, tuple[int, ...]]:
    coarse_rows = text_tokens + tokens - 3 * refined
    return {
        "latents": (batch, tokens, facts.in_channels),
        "text": (batch, text_tokens, facts.text_dim),
        "pooled": (batch, facts.pooled_dim),
        "timestep": (batch,),
        **({"guidance": (batch,)} if facts.guidance else {}),
        "rope_cos": (text_tokens + tokens, facts.head_dim),
        "rope_sin": (text_tokens + tokens, facts.head_dim),
        **(dict.fromkeys(COARSE_ROPE, (coarse_rows, facts.head_dim)) if refined else {}),
    }


def bypass_signature(
    facts: ModelFacts,
    tokens: int,
    text_tokens: int,
    *,
    site: CacheSite = "final",
    batch: int = 1,
) -> GraphSignature:
    """Signature of the ``bypass`` graph for ``tokens`` image tokens; all float32.

    ``feature`` stands for the image tokens after the last block, ``residual`` at the trunk for what
    all blocks after the first add to them; the rest as in :func:`full_signature`.
    """
    outputs = {"velocity": (batch, tokens, facts.in_channels)}
    if site == "trunk":
        whole = _full_inputs(facts, tokens, text_tokens, 0, batch)
        inputs = {FEATURES[site]: (batch, tokens, facts.hidden), **whole}
        return GraphSignature(inputs=_specs(inputs), outputs=_specs(outputs))
    inputs = {
        "feature": (batch, tokens, facts.hidden),
        "pooled": (batch, facts.pooled_dim),
        "timestep": (batch,),
        **({"guidance": (batch,)} if facts.guidance else {}),
    }
    return GraphSignature(inputs=_specs(inputs), outputs=_specs(outputs))


def stage_signature(
    facts: ModelFacts,
    plan: StagePlan,
    stage: int,
    text_tokens: int,
    action: Action = "full",
    *,
    feature: bool | None = None,
) -> GraphSignature:
    """Signature of a graph of a plan's stage, counted from 0.

    The full graph gives its feature if ``feature`` says so; None: where a later step of the stage
    is a bypass. Where bypass steps are coarse velocities, theirs is the full graph of that grid,
    and no graph has a feature.
    """
    tokens = plan.tokens[stage]
    site: CacheSite = "final" if plan.cache is None else plan.cache.site
    if action == "bypass" and plan.velocity_grid is not None:
        return full_signature(facts, plan.velocity_grid.tokens, text_tokens)
    if action == "bypass":
        return bypass_signature(facts, tokens, text_tokens, site=site)
    if plan.velocity_grid is not None:
        feature = False
    elif feature is None:
        feature = "bypass" in plan.stages[stage].actions
    refined = plan.aligned[stage]
    return full_signature(facts, tokens, text_tokens, refined=refined, feature=feature, site=site)


def _specs(shapes: Mapping[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()
    )


def full_graph(
    transformer: Module, *, feature: bool = False, site: CacheSite = "final"
) -> FullGraph:
    """The module to export for :func:`full_signature`; shares the transformer's weights."""
    from fresco_trt.models.flux.graph import FullGraph

    return FullGraph(transformer, feature=feature, site=site).eval()


def graph_from_signature(transformer: Module, signature: GraphSignature) -> Module:
    """The module a signature of this family was written for (eager runners rebuild it so)."""
    inputs = {spec.name for spec in signature.inputs}
    if inputs & set(FEATURES.values()):
        from fresco_trt.models.flux.graph import BypassGraph, TrunkBypassGraph

        bypass = BypassGraph if FEATURES["final"] in inputs else TrunkBypassGraph
        return bypass(transformer).eval()
    outputs = {spec.name for spec in signature.outputs}
    site: CacheSite = "trunk" if FEATURES["trunk"] in outputs else "final"
    feature = FEATURES[site] in outputs
    if COARSE_ROPE[0] not in inputs:
        return full_graph(transformer, feature=feature, site=site)
    from fresco_trt.models.flux.aligned import AlignedGraph, MixedOrder

    text, tokens = (signature.input(name).shape[1] for name in ("text", "latents"))
    coarse = signature.input(COARSE_ROPE[0]).shape[0] - text
    refined = (tokens - coarse) // 3
    order = MixedOrder(text=text, kept=coarse - refined, refined=refined)
    return AlignedGraph(transformer, order, feature=feature).eval()


def cut(graph: Module, signature: GraphSignature) -> Cut:
    """A graph of :func:`graph_from_signature` as parts, for engines compiled block by block."""
    from fresco_trt.models.flux import blocks as flux_blocks

    return flux_blocks.cut(graph, signature)


# --- weights ----------------------------------------------------------------------------------


def load_transformer(
    weights: str | Path | None,
    facts: ModelFacts,
    *,
    dtype: torch.dtype | None = None,
    layers: tuple[int, int] | None = None,
    seed: int = 0,
) -> Module:
    """The transformer of ``facts`` in evaluation mode on the CPU, in ``dtype`` (default float32).

    ``weights`` is a diffusers pipeline folder, a transformer folder, a ``.safetensors`` file
    (diffusers' or the original naming), None for the packaged weights or the hub, or ``"random"``:
    real dimensions, seeded values, optionally only ``layers`` = (double, single) blocks deep.
    Raises WeightsNotFound, and IncompatibleOptions if the weights are another model's.
    """
    import torch

    if weights == "random":
        return random_transformer(facts, dtype=dtype, layers=layers, seed=seed)
    if layers is not None:
        raise IncompatibleOptions(
            f"a depth of {layers[0]}+{layers[1]} blocks with stored weights",
            expected="a depth override with random weights only",
            fix="pass --weights random, or leave the depth to the model",
        )
    path = None if weights is None else Path(weights)
    source = find_transformer(path, model=facts.name, repository=REPOSITORIES.get(facts.name))
    if source.is_dir():
        check_config(source, facts)
    return _assembled(source, transformer_config(facts), dtype or torch.float32)


def transformer_from_folder(folder: Path) -> Module:
    """The transformer of a folder as it is stored: its own dimensions, its own dtype, on the CPU.

    For engines, whose folder a build has checked. Raises WeightsNotFound or IncompatibleOptions.
    """
    stored = read_config(folder)
    config = {name: value for name, value in stored.items() if not name.startswith("_")}
    return _assembled(folder, config, None)


def random_transformer(
    facts: ModelFacts,
    *,
    dtype: torch.dtype | None = None,
    layers: tuple[int, int] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Module:
    """Seeded random weights at the real dimensions: for latency work, not for pictures.

    Made on ``device``; of one seed each kind of device makes its own.
    """
    import torch

    from fresco_trt.models.flux.graph import initialise

    model = _empty(transformer_config(facts, layers=layers))
    # diffusers' own ``to`` warns about every cast; this is the plain one.
    model = torch.nn.Module.to(model, dtype or torch.float32).to_empty(device=device)
    initialise(model, seed=seed)
    return model.eval().requires_grad_(False)


def _empty(config: Mapping[str, Any]) -> Module:
    """The architecture on the meta device: no memory is touched before the weights arrive."""
    import diffusers
    import torch

    untyped: Any = diffusers
    with torch.device("meta"):
        model: Module = untyped.FluxTransformer2DModel(**config)
    return model


def _assembled(source: Path, config: Mapping[str, Any], dtype: torch.dtype | None) -> Module:
    tensors = _diffusers_names(read_weights(source))
    model = _empty(config)
    if dtype is None:  # as they are stored, which may be as codes
        from fresco_trt.models.fp8 import make_room

        make_room(model, tensors)
    check_names(model, tensors, what=f"the weights at {source}")
    cast = {name: value.to(dtype or value.dtype) for name, value in tensors.items()}
    model.load_state_dict(cast, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _diffusers_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Original checkpoints name their blocks ``double_blocks``; diffusers has the converter."""
    if not any("double_blocks." in name for name in tensors):
        return tensors
    from diffusers.loaders import single_file_utils

    untyped: Any = single_file_utils
    converted: dict[str, Tensor]
    converted = untyped.convert_flux_transformer_checkpoint_to_diffusers(tensors)
    return converted
