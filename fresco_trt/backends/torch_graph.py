"""What the backends over torch share: a bundle's weights, and calls made fit to be replayed.

Between the backends over torch, whose engines launch kernel by kernel from the host, and
``cuda_graph.py``. On a grid of few tokens those launches take longer than the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from fresco_trt.backends.base import Call, EngineFile, EngineRunner, check_outputs
from fresco_trt.backends.cuda_device import CudaDevice, Device
from fresco_trt.backends.cuda_graph import Graph
from fresco_trt.backends.transformer import SharedTransformers, torch_errors

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor

    from fresco_trt.plan.signature import GraphSignature


class TorchBackend:
    """Base of the backends whose engines torch runs, on CUDA where there is a GPU.

    ``transformers`` are shared with whoever else holds them; its runners' own by default.
    ``cuda_graphs`` False launches kernel by kernel at every call. On CUDA the runners of one
    backend share a stream and the memory of their graphs, so they are called from one thread, and
    weights are changed in place only. ``device`` replaces the GPU (tests script it).
    """

    def __init__(
        self,
        transformers: SharedTransformers | None = None,
        *,
        cuda_graphs: bool = True,
        device: Device | None = None,
    ) -> None:
        self._transformers = transformers or SharedTransformers()
        self._device, self._cuda_graphs = device or CudaDevice(), cuda_graphs

    def _runner(
        self, record: EngineFile, open_session: Callable[[Graph], AbstractContextManager[Call]]
    ) -> EngineRunner:
        graph = Graph(record.name, self._device, captures=self._cuda_graphs)
        return EngineRunner(
            record.signature,
            partial(open_session, graph),
            graph=graph,
        )


@contextmanager
def replayed(run: Call, signature: GraphSignature, graph: Graph) -> Iterator[Call]:
    """Within the scope: ``run`` through ``graph``; ``run`` itself where there is no GPU, or nothing
    is to be captured.

    ``run`` takes and gives the tensors of ``signature``, waits for nothing, and does the same work
    over the same weights at every call. Raises OutOfDeviceMemory.
    """
    if not graph.captures or graph.device.capability() is None:
        yield run
        return
    try:
        yield _StaticCall(run, signature, graph)
    finally:
        graph.forget()


class _StaticCall:
    """Copies inputs in, queues the graph, and gives outputs that the next call overwrites.

    The copy of the outputs is the last that a graph does: they are outside the memory that it
    shares with the graphs of other engines, so those leave them alone.
    """

    def __init__(self, run: Call, signature: GraphSignature, graph: Graph) -> None:
        self._run, self._signature, self._graph = run, signature, graph
        empty = graph.device.empty
        self._inputs = {spec.name: empty(spec) for spec in signature.inputs}
        self._outputs = {spec.name: empty(spec) for spec in signature.outputs}

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        import torch

        with (
            torch.no_grad(),  # or the buffers would be tracked from then on
            torch_errors("running the engine"),
            self._graph.device.stream(),
        ):
            for name, tensor in inputs.items():
                self._inputs[name].copy_(tensor, non_blocking=True)
            self._graph.queue(self._launch)
        return dict(self._outputs)

    def _launch(self) -> None:
        outputs = self._run(self._inputs)
        check_outputs(self._signature, outputs)  # a copy would cast and spread what does not fit
        for name, buffer in self._outputs.items():
            buffer.copy_(outputs[name])
