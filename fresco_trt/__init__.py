"""Diffusion transformers sketched at low resolution and refined to full size, as static engines.

The data path, one folder or file a step::

    schedule -> stage plan -> stage graphs -> engines -> bundle => runners -> sampler -> pipeline
    plan/       plan/         lower/          backends/  bundle/   backends/  run/       pipelines/

Left of the double arrow happens once, ahead of time: ``plan`` makes numbers, ``tune`` finds the
best ones for weights, ``build`` makes a bundle of engines. Right of it happens for every picture
and needs only the bundle: ``FrescoPipeline``. The command line, ``fresco-trt``, is a thin shell
over the same calls. Beside it: ``enable`` puts the sampler into a diffusers pipeline, and
``torch.compile`` takes the backend "fresco_trt" for models without a plan.

Importing this package imports neither torch nor any engine library; they come with the first call
that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import FrescoError

# The functions ``plan`` and ``tune`` share their names with subpackages. Python sets such an
# attribute when the subpackage is first imported, which is here, and only then: the function bound
# afterwards stays.
import_module("fresco_trt.plan")
import_module("fresco_trt.tune")
from fresco_trt.api import plan, pretrained, tune  # noqa: E402

if TYPE_CHECKING:
    from fresco_trt.lower.build import build
    from fresco_trt.pipelines.diffusers import disable, enable
    from fresco_trt.pipelines.image import FrescoPipeline
    from fresco_trt.plan.config import CacheConfig, QuantConfig, TargetConfig

__version__ = "0.1.0"

_LAZY = {
    "CacheConfig": "fresco_trt.plan.config",
    "FrescoPipeline": "fresco_trt.pipelines.image",
    "QuantConfig": "fresco_trt.plan.config",
    "TargetConfig": "fresco_trt.plan.config",
    "build": "fresco_trt.lower.build",
    "disable": "fresco_trt.pipelines.diffusers",
    "enable": "fresco_trt.pipelines.diffusers",
}

__all__ = [
    "CacheConfig",
    "FrescoError",
    "FrescoPipeline",
    "QuantConfig",
    "TargetConfig",
    "__version__",
    "build",
    "disable",
    "enable",
    "plan",
    "pretrained",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import what is heavy when it is first asked for (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, whether or not they have been imported yet."""
    return list(__all__)
