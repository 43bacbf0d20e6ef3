"""A stage's feature cache: what full steps leave there and what bypass steps start from.

Between the stage's state and the predictors of :mod:`fresco_trt.run.cache`. One belongs to one
stage of one request: entering a stage makes an empty one, which is how the cache is emptied at a
change of resolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch

from fresco_trt.plan.caching import FEATURES
from fresco_trt.run.cache.registry import predictor

if TYPE_CHECKING:
    from torch import Tensor

    from fresco_trt.plan.caching import CachePlan
    from fresco_trt.plan.stages import StagePlan
    from fresco_trt.run.cache.base import Predictor


class StageCache:
    """A predictor with its state; features [B,N,H] float32, on the engines' device.

    ``feature`` is what the graphs call them.
    """

    def __init__(self, predicts: Predictor[Any], cache: CachePlan) -> None:
        self.feature = FEATURES[cache.site]
        self._predictor = predicts
        self._state = predicts.start()

    @classmethod
    def of(cls, plan: StagePlan, index: int, basis: Tensor | None) -> StageCache | None:
        """An empty cache for the stage counted from 0; None where every step of it is full, or
        coarse (:mod:`fresco_trt.run.cache.coarse_velocity`).

        Raises IncompatibleOptions for a predictor that needs what there is not.
        """
        if plan.cache is None or plan.velocity_grid is not None:
            return None
        if "bypass" not in plan.stages[index].actions:
            return None
        return cls.over(plan, index, plan.cache, basis)

    @classmethod
    def over(cls, plan: StagePlan, index: int, cache: CachePlan, basis: Tensor | None) -> Self:
        """An empty cache for a stage, whatever the plan's own is; raises as :meth:`of`."""
        grid = plan.stages[index].grid
        places = None if plan.refined[index] else (grid.frames, grid.rows, grid.columns)
        return cls(predictor(cache, grid=places, basis=basis), cache)

    def observe(self, feature: Tensor, step: int) -> None:
        """Keep what a full step left; ``step`` counts from the stage's first."""
        with torch.no_grad():
            self._state = self._predictor.observe(self._state, feature, float(step))

    def predict(self, step: int) -> Tensor:
        """The feature of a bypass step."""
        with torch.no_grad():
            return self._predictor.predict(self._state, float(step))
