"""Feature caches: what a bypass step's feature is taken to be, from those of the full steps before.

Between two engines of :mod:`fresco_trt.run.sampler`: a full step's engine hands over the image
tokens after its last block, a predictor here continues them along the sampler's axis, and the
bypass engine turns the continuation into a velocity. Everything is a linear combination of what was
observed, with weights computed on the host, so nothing here waits for a device.
"""

from fresco_trt.plan.caching import CacheTraits as CacheTraits
from fresco_trt.run.cache.base import Predictor as Predictor
from fresco_trt.run.cache.registry import predictor as predictor
from fresco_trt.run.cache.registry import register as register
