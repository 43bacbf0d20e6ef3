"""The config objects: what is asked for of a cache, a precision, a target and a preset.

In front of the data path. Python passes the object or its spelling, the command line and the
manifest have the spelling (:mod:`fresco_trt.plan.spelling`). None means the default; whether a
value fits the model and the others is said where it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fresco_trt.plan.spelling import Config

NONE = "none"
"""The cache that answers no step."""

STATIC, PROFILES = LAYOUTS = ("static", "profiles")
"""How engines hold weights: an engine for each stage, or one for all that has them once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig(Config):
    """Which steps are skipped, and what predicts them: ``hicache,interval=3,warmup_steps=2``."""

    option: ClassVar[str] = "--cache"
    example: ClassVar[str] = "hicache,interval=3,warmup_steps=2"

    name: str = NONE
    """A predictor's name ("hicache"), or "none"."""
    interval: int | None = None
    """One full step in so many, in each stage; default with one stage that of the model's papers,
    or 7, else 2."""
    warmup_steps: int | None = None
    """Full steps at the start of each stage; default with one stage that of the model's papers, or
    3, else 2."""
    max_order: int | None = None
    """Order of the extrapolation: 1 a line, 2 a parabola, 3 a cubic; default the predictor's."""
    actions: tuple[str, ...] = ()
    """In place of interval and warmup_steps, each step: a word a stage, F full and B skipped."""
    site: str | None = None
    """What is predicted: "final", the features after the last block, or "trunk", what all blocks
    after the first add, so that the first always runs; default the predictor's."""
    basis: Path | None = None
    """File of ``fresco-trt calibrate --measure basis``, for a predictor that needs one; a build
    without it measures its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantConfig(Config):
    """The precision of engines, and how it is reached: ``fp8,recipe=fp8-attention``."""

    option: ClassVar[str] = "--precision"
    example: ClassVar[str] = "fp8,recipe=fp8-attention,keep=*.ff.net.2+proj_out"

    precision: str = "fp32"
    """fp32, bf16, fp16, fp8 or int8."""
    recipe: str | None = None
    """How int8 or fp8 quantises: int8-smooth (SmoothQuant), int8, fp8, fp8-rowwise
    (a scale a token) or fp8-attention (attention's products too); default the precision's first."""
    keep: tuple[str, ...] = ()
    """Patterns of layers that stay as they are, beside those the model always keeps."""
    amax: Path | None = None
    """File of ``fresco-trt calibrate --measure amax``; a build without it measures its own."""
    force: bool = False
    """Publish a quantised bundle that fails the quality gate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetConfig(Config):
    """What engines are built for: ``batch=4``; of TensorRT ``sm89+sm120,layout=profiles``, too."""

    option: ClassVar[str] = "--target"
    example: ClassVar[str] = "sm89+sm120,layout=profiles"

    gpus: tuple[str, ...] = ()
    """GPU architectures ("sm89"); default all that the library can target."""
    layout: str = STATIC
    """static, an engine for each stage, or profiles, one for all that has the weights once."""
    stream_weights: bool = False
    """Keep on the host what weights the GPU has no room for."""
    batch: int = 1
    """Pictures that an engine takes at once, of any library. What a run lacks is filled with copies
    that nobody sees."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PresetConfig(Config):
    """A preset and what is changed of it: ``balanced,delta=0.05,shift=9``,
    ``turbo,text_tokens=128+256+512``.
    """

    option: ClassVar[str] = "--preset"
    example: ClassVar[str] = "balanced,delta=0.05,shift=9"

    name: str | None = None
    """A preset of the model's; default "balanced"."""
    delta: float | None = None
    """Switch where SPEED's spectral criterion says, at this tolerance; 0.01 to 0.2."""
    shift: float | None = None
    """Time shift factor of every stage: above 1, more steps where noise is high."""
    solver: str | None = None
    """What takes the steps: euler, multistep, dpmpp_2m or unipc; default the preset's."""
    text_tokens: tuple[int, ...] = ()
    """Text tokens of each stage, coarsest first: all, half or a quarter of the model's. What is cut
    is padding, which the model was trained with: its input changes, and with it the picture."""
    text_amplifier: float | None = None
    """Of a clip: how much more coarse stages see of the text, Jenga's rho; 0.5 is the paper's."""
    tube: bool = False
    """Of a clip and a preset with a mixed stage: refine the same places in all latent frames."""
    threshold: float | None = None
    """The discrepancy between draft and source from which a token is edited, of selective edits."""
    sparse_attention: float | None = None
    """Of HunyuanVideo: the share of the clip's blocks of keys that each block of queries attends
    to, over 0 and at most 1; the text always is. Default all of them, without choosing."""
    references: str | None = None
    """Of models that edit: "coarse", the source in each stage as coarse as what is drawn, or "fine"
    in all of them, for more tokens in the coarse ones. Default "coarse"."""
