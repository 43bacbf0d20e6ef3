"""The methods that run inside diffusers' own pipeline: plain steps and the caches put upon it.

Settings of :mod:`fresco_trt.bench.points` go in, a function that draws comes out. FLOPs are
counted at the linear layers that really ran, so that what a cache saved is what it saved here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fresco_trt.bench.instrument import Draw, Drawn
from fresco_trt.bench.methods import CacheDit, FirstBlock, TaylorSeer
from fresco_trt.bench.plain import Plain, denoise, load_pipeline

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor

    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.sizes import Size

_BLOCKS = ("transformer_blocks.", "refiner_blocks.")
"""Where a transformer's blocks are by its names, and those that the text passes alone."""

DiffusersSettings = Plain | TaylorSeer | FirstBlock | CacheDit


class DiffusersMethods:
    """diffusers' pipeline over a model folder, with the cache that settings name on while it draws.

    cache-dit rewrites the modules that it is put on, so it has a pipeline of its own.
    """

    def __init__(self, folder: Path, facts: ModelFacts, size: Size, device: str = "cpu") -> None:
        self._folder, self._facts, self._size, self._device = folder, facts, size, device
        self._pipes: dict[bool, Any] = {}

    def method(self, settings: DiffusersSettings) -> Draw:
        """What draws by some settings.

        Raises ImportError where cache-dit is not installed, and whatever it raises on import.
        """
        pipe = self._pipe(apart=isinstance(settings, CacheDit))
        cache = cache_of(settings)
        point = Plain(steps=settings.steps, mu=settings.mu)
        width, height = self._size[:2]
        cell = self._facts.vae_scale * self._facts.patch
        length = width // cell * (height // cell) + self._facts.text_tokens

        def draw(inputs: Mapping[str, Tensor], seed: int) -> Drawn:
            with cache(pipe), FlopMeter(pipe.transformer, length) as meter:
                latents, seconds = denoise(pipe, self._facts, self._size, inputs, [seed], point)
            return Drawn(latents=latents, seconds=seconds, engine_seconds=None, flops=meter.flops)

        return draw

    def _pipe(self, *, apart: bool) -> Any:
        if apart not in self._pipes:
            self._pipes[apart] = load_pipeline(self._folder, self._device)
        return self._pipes[apart]


def cache_of(settings: DiffusersSettings) -> Callable[[Any], AbstractContextManager[None]]:
    """What puts a cache on a pipeline for the length of a scope, and empties it after."""
    if isinstance(settings, TaylorSeer):
        return _hooked(_taylor_config(settings))
    if isinstance(settings, FirstBlock):
        hooks: Any = import_module("diffusers.hooks")
        return _hooked(hooks.FirstBlockCacheConfig(threshold=settings.threshold))
    if isinstance(settings, CacheDit):
        return _dit(settings)
    return _bare


def _taylor_config(settings: TaylorSeer) -> Any:
    import torch

    hooks: Any = import_module("diffusers.hooks")
    return hooks.TaylorSeerCacheConfig(
        cache_interval=settings.interval,
        max_order=settings.order,
        use_lite_mode=settings.lite,
        taylor_factors_dtype=torch.float32,  # the weights' own; its default is for bfloat16 models
    )


@contextmanager
def _bare(pipe: Any) -> Iterator[None]:
    yield


def _hooked(config: Any) -> Callable[[Any], AbstractContextManager[None]]:
    @contextmanager
    def hooked(pipe: Any) -> Iterator[None]:
        pipe.transformer.enable_cache(config)
        try:
            yield
        finally:
            pipe.transformer.disable_cache()

    return hooked


def _dit(settings: CacheDit) -> Callable[[Any], AbstractContextManager[None]]:
    """cache-dit's own defaults but for the threshold, the blocks that always run and the warm-up.

    By default it always computes eight blocks, which are all that a small model has, and eight
    steps, which are most of a short run: one and three here, as the other caches do.
    """
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "ERROR")  # which it reads on import
    library: Any = import_module("cache_dit")
    calibrator = library.TaylorSeerCalibratorConfig(taylorseer_order=1) if settings.taylor else None

    @contextmanager
    def cached(pipe: Any) -> Iterator[None]:
        config = library.DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            max_warmup_steps=3,
            residual_diff_threshold=settings.threshold,
        )
        library.enable_cache(pipe, cache_config=config, calibrator_config=calibrator)
        try:
            yield
        finally:
            library.disable_cache(pipe)

    return cached


class FlopMeter:
    """Counts the FLOPs of a transformer's blocks while in scope, as ``plan/cost.py`` counts them.

    Linear layers on token sequences, and attention once for each query projection of the image, and
    of the text where it passes blocks of its own; ``length`` is text plus image tokens. Costs under
    a thousandth of a step: one short Python call for each layer that runs.
    """

    def __init__(self, transformer: Any, length: int) -> None:
        self.flops = 0.0
        self._transformer, self._length = transformer, length
        self._handles: list[Any] = []

    def __enter__(self) -> FlopMeter:
        import torch

        for name, module in self._transformer.named_modules():
            in_block = any(part in name for part in _BLOCKS)
            if in_block and isinstance(module, torch.nn.Linear):
                self._handles.append(module.register_forward_pre_hook(self._counter(name, module)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _counter(self, name: str, module: Any) -> Callable[[Any, tuple[Any, ...]], None]:
        a_row = 2.0 * module.in_features * module.out_features
        queries = name.endswith(".to_q")
        whole, alone = 4.0 * module.out_features * queries, _BLOCKS[1] in name

        def count(_: Any, arguments: tuple[Any, ...]) -> None:
            shape = arguments[0].shape
            if len(shape) == 3:  # modulations work on one vector and are left out, as in the plan
                length = shape[1] if alone else self._length
                self.flops += shape[0] * (shape[1] * a_row + whole * length**2)

        return count
