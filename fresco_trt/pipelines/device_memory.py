"""Whether a bundle's engines fit on the GPU, asked with numbers before any of them is loaded.

Their files say what the weights take, and the plan the live tensors of the largest stage: less
than that cannot be enough, so what is refused here would have failed halfway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fresco_trt.backends.transformer import torch_device
from fresco_trt.errors import OutOfDeviceMemory
from fresco_trt.models.registry import model_facts
from fresco_trt.plan.cost import activation_bytes

if TYPE_CHECKING:
    from fresco_trt.bundle import Bundle


def free_device_bytes() -> int | None:
    """GPU memory that this process may still take, what torch keeps unused among it; None without
    a GPU.
    """
    if torch_device() != "cuda":
        return None
    import torch

    kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return int(torch.cuda.mem_get_info()[0]) + kept


def check_device_memory(bundle: Bundle, free: int | None) -> None:
    """Raise OutOfDeviceMemory where ``free`` bytes are less than the bundle's engines need."""
    manifest = bundle.manifest
    if free is None or manifest.backend.target.stream_weights:
        return
    names = {name for engine in manifest.engines for name in engine.files}
    weights = sum(file.bytes for file in manifest.files if file.path in names)
    facts, tokens = model_facts(manifest.model.name), max(bundle.plan.tokens)
    alive = bundle.batch * activation_bytes(
        facts,
        tokens,
        manifest.precision,
        references=facts.references * bundle.plan.stages[-1].grid.tokens,
        text_tokens=min(facts.text_tokens, manifest.text_tokens),
    )
    if weights + alive > free:
        raise OutOfDeviceMemory(
            f"engines of {weights / 1e9:.2f} GB and {alive / 1e9:.2f} GB of live tensors,"
            f" {free / 1e9:.2f} GB of GPU memory free",
            expected="a GPU that they fit on; nothing was loaded",
            fix="close other programs on the GPU, or build for a smaller --size or in fp8",
        )
