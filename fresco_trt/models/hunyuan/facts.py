"""Facts of HunyuanVideo, which draws clips (arXiv 2412.03603), and of a demo of its architecture.

Dimensions are those of the published transformer config, the schedule that of the published
scheduler: every size has the shift 7. The spectrum of these latents was not measured.
"""

from __future__ import annotations

from dataclasses import replace

from fresco_trt.plan.config import CacheConfig
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.presets import Preset

# What quantisers leave alone in this architecture: all but the blocks' attention and MLPs.
_HIGH_PRECISION = (
    "x_embedder.*",
    "context_embedder.*",
    "time_text_embed.*",
    "*norm*.linear",
    "proj_out",
)

# A step on the half grid costs a tenth of one on the full grid, and one on the quarter grid an
# eightieth: what the last stage does is what a plan costs. Against 50 full steps at 1280x720 and
# 129 frames: 3x, 5x, 7x, 10x. The switches are where SPEED's spectral criterion puts them for the
# VAE of Wan 2.1 (A 219.485, beta 2.4227; arXiv 2605.18736), the nearest that is known, delta 0.01,
# 0.02, 0.05 and 0.1; the shifts of the stages are Jenga's (arXiv 2505.16864, code). Nothing of it
# was searched.
_TWO, _THREE = (7.0, 9.0), (7.0, 9.0, 11.0)

_PRESETS = {
    "quality": {
        1: Preset(steps=(17,)),
        2: Preset(steps=(18, 15), switch=(0.777,), shift=_TWO),
        3: Preset(steps=(10, 12, 15), switch=(0.9, 0.777), shift=_THREE),
    },
    "balanced": {
        1: Preset(steps=(10,)),
        2: Preset(steps=(12, 9), switch=(0.71,), shift=_TWO),
        3: Preset(steps=(8, 10, 9), switch=(0.864, 0.71), shift=_THREE),
    },
    "fast": {
        1: Preset(steps=(7,)),
        2: Preset(steps=(12, 6), switch=(0.605,), shift=_TWO),
        3: Preset(steps=(8, 10, 6), switch=(0.799, 0.605), shift=_THREE),
    },
    "turbo": {
        1: Preset(steps=(5,)),
        2: Preset(steps=(11, 4), switch=(0.513,), shift=_TWO),
        3: Preset(steps=(8, 10, 4), switch=(0.734, 0.513), shift=_THREE),
    },
}


def _fresco(steps: tuple[int, int, int]) -> Preset:
    """A point of Fresco's, as :mod:`fresco_trt.models.flux.facts` has them."""
    return Preset(
        steps=steps,
        switch=(0.7, 0.55),
        lift="haar",
        noise="rewind",
        refine=((("converged-latent", 0.4),), ()),
    )


# Named by their steps, at 1280x704 and 125 frames those that give the published ratios of FLOPs,
# 3.91x and 4.92x (arXiv 2601.07462, Table 2); more of these points was not published. The share is
# the same for both, the switches are those of the model's points for pictures.
_FRESCO_PRESETS = {"fresco-23": {3: _fresco((4, 10, 9))}, "fresco-18": {3: _fresco((5, 5, 8))}}

# Of 50 steps 10, 8 and 9 are full. TaylorSeer's repository has interval, order and warm-up of this
# model (arXiv 2503.06923, code). HiCache's table has interval and order (arXiv 2508.16984), SVD-
# Cache's the interval (2601.07396); their FLOPs are those of a warm-up of one step.
_CACHES = {
    "taylor": CacheConfig(name="taylor", interval=5, warmup_steps=1, max_order=1),
    "hicache": CacheConfig(name="hicache", interval=7, warmup_steps=1, max_order=2),
    "svd": CacheConfig(name="svd", interval=6, warmup_steps=1),
}

HUNYUAN_VIDEO = ModelFacts(
    name="hunyuan-video",
    family="hunyuan",
    hidden=3072,
    heads=24,
    head_dim=128,
    double_blocks=20,
    single_blocks=40,
    mlp_ratio=4,
    in_channels=64,
    text_dim=4096,
    pooled_dim=768,
    text_tokens=256,
    rope_axes=(16, 56, 56),
    guidance=True,
    guidance_default=6.0,
    default_steps=50,
    vae_scale=8,
    latent_channels=16,
    patch=2,
    default_size=(1280, 720, 129),
    max_pixels=1280 * 720,
    parameters=12_821_012_544,
    high_precision=_HIGH_PRECISION,
    shift=None,
    spectrum=None,
    presets={**_PRESETS, **_FRESCO_PRESETS},
    temporal_scale=4,
    max_frames=129,
    fixed_shift=7.0,
    text_masked=True,
    text_layers=2,
    text_biased=True,
    sparse_attention=True,
    margins=True,
    calibrated=False,
    caches=_CACHES,
)

# Against 50 full steps at 128x128 and 13 frames: 3x, 5x, 7x, 10x. Text and overheads are more of
# so small a model: a step on the half grid costs a quarter of one on the full grid, one on the
# quarter grid a tenth. The switches are by the criterion as above, on latents of 16 pixels a side;
# every stage has the model's own shift. Nothing of it was searched.
_TINY_PRESETS = {
    "quality": {
        1: Preset(steps=(17,)),
        2: Preset(steps=(14, 13), switch=(0.845,)),
        3: Preset(steps=(8, 11, 13), switch=(0.945, 0.845)),
    },
    "balanced": {
        1: Preset(steps=(10,)),
        2: Preset(steps=(12, 7), switch=(0.793,)),
        3: Preset(steps=(6, 9, 7), switch=(0.924, 0.793)),
    },
    "fast": {
        1: Preset(steps=(7,)),
        2: Preset(steps=(12, 4), switch=(0.706,)),
        3: Preset(steps=(6, 10, 4), switch=(0.884, 0.706)),
    },
    "turbo": {
        1: Preset(steps=(5,)),
        2: Preset(steps=(8, 3), switch=(0.624,)),
        3: Preset(steps=(6, 5, 3), switch=(0.842, 0.624)),
    },
    **_FRESCO_PRESETS,
}

# The demo that training/video.py trains: captions of at most 12 tokens, guidance from 1 to 6.
HUNYUAN_TINY = replace(
    HUNYUAN_VIDEO,
    name="hunyuan-tiny",
    hidden=160,
    heads=5,
    head_dim=32,
    double_blocks=1,
    single_blocks=4,
    text_dim=64,
    pooled_dim=64,
    text_tokens=16,
    text_layers=1,
    rope_axes=(8, 12, 12),
    guidance_default=3.0,
    default_size=(128, 128, 13),
    max_pixels=128 * 128,
    max_frames=13,
    parameters=3_186_208,
    presets=_TINY_PRESETS,
    fixed_shift=3.0,
)

HUNYUAN_FACTS = (HUNYUAN_VIDEO, HUNYUAN_TINY)
