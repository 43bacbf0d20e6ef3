"""A process that compiles pieces, one after another, for the build that started it.

Under ``pool.py``. A task is a line of JSON on standard input, its answer a line on what was
standard output; what torch and the compilers say goes to standard error.
"""

from __future__ import annotations

import base64
import faulthandler
import gc
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from time import sleep
from typing import TYPE_CHECKING, Any

from fresco_trt.backends.inductor import log
from fresco_trt.errors import FrescoError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from fresco_trt.plan.signature import GraphSignature


def main() -> None:
    """Answer every task until there is none, or nobody who asks."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    faulthandler.enable()  # what a signal ended is said too, and the commands before it
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger(log.__name__).setLevel(logging.DEBUG)
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # Tracing makes millions of objects that nothing refers to in circles: by default, a tenth of
    # torch's own time goes into looking for such.
    gc.set_threshold(200_000, 20, 100)
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


def _end_with(parent: int) -> None:
    """A build that was killed could not end its helpers, nor the compilers that those started."""
    while os.getppid() == parent:
        sleep(0.5)
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _answer(task: Mapping[str, Any]) -> dict[str, Any]:
    try:
        _compile(task)
    except FrescoError as error:
        told = {"given": error.given, "expected": error.expected, "fix": error.fix}
        return {"error": type(error).__name__, **told}
    except Exception as error:
        return {"error": None, "given": f"{type(error).__name__}: {error}"}
    return {}


def _compile(task: Mapping[str, Any]) -> None:
    from fresco_trt.backends.inductor.attention import using
    from fresco_trt.backends.inductor.build import compile_layer
    from fresco_trt.backends.inductor.probe import trust

    device = task["device"]
    trust(device)  # this process is the one that dies, if one has to
    layer, signature = unpacked(task["piece"], device)
    set_state(task["state"])
    with using(task["attention"]):
        compile_layer(layer, signature, Path(task["path"]), device, task["threads"])


# --- a piece without its weights --------------------------------------------------------------

_MOST_BYTES = 64 * 1024 * 1024
"""A piece that takes more holds tensors that are no weights of its own."""


def packed(layer: Module, signature: GraphSignature) -> str:
    """A layer's structure, and the shapes and types of its weights, without their values: what is
    compiled does not depend on them. Raises whatever an object raises that cannot be told to
    another process.
    """
    import copy

    import torch

    content = io.BytesIO()
    emptied: dict[int, Any] = {id(each): _like(each, "meta") for each in _weights(layer)}
    torch.save((copy.deepcopy(layer, emptied), signature), content)
    if content.tell() > _MOST_BYTES:
        raise ValueError(f"{content.tell()} bytes beside the weights")
    return base64.b64encode(content.getvalue()).decode("ascii")


def unpacked(piece: str, device: str) -> tuple[Module, GraphSignature]:
    """That layer on ``device``, with some weights, no two alike, and its signature.

    The text is a process's own, from the build that started it.
    """
    import copy

    import torch

    content = io.BytesIO(base64.b64decode(piece))
    layer, signature = torch.load(content, weights_only=False)
    filled: dict[int, Any] = {}
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for each in _weights(layer):
            filled[id(each)] = value = _like(each, device)
            value.copy_(torch.rand(value.shape, generator=generator, device=device))
    return copy.deepcopy(layer, filled), signature


def _weights(layer: Module) -> list[Tensor]:
    return [*layer.parameters(), *layer.buffers()]


def _like(tensor: Tensor, device: str) -> Tensor:
    """As large and laid out alike; the values are not set."""
    import torch

    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


# --- what the compiled code depends on beside the piece ---------------------------------------

_ATTENTION = ("flash", "mem_efficient", "math", "cudnn")


def state() -> dict[str, Any]:
    """What a program has set of torch: the precision of products, the attention it allows."""
    import torch

    cuda: Any = torch.backends.cuda
    allowed = {kind: getattr(cuda, f"{kind}_sdp_enabled")() for kind in _ATTENTION}
    return {"products": torch.get_float32_matmul_precision(), "attention": allowed}


def set_state(state: Mapping[str, Any]) -> None:
    """Set what :func:`state` gave."""
    import torch

    cuda: Any = torch.backends.cuda
    torch.set_float32_matmul_precision(state["products"])
    for kind, allowed in state["attention"].items():
        getattr(cuda, f"enable_{kind}_sdp")(allowed)
