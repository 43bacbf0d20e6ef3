"""Which of torch's attentions a compiled block runs: measured where it is built, for each shape.

Under ``naming.py``. torch has several kernels for the two products of attention, and its
own choice among them knows the device but not how long each takes for one number of tokens. A kind
is chosen once, when a block is compiled, and is part of the compiled code.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from fresco_trt.errors import EngineFailed, ManifestInvalid
from fresco_trt.files.atomic_file import replacing
from fresco_trt.files.canonical_json import bounded_file

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from fresco_trt.plan.signature import GraphSignature

DEFAULT = "default"
"""Whatever torch takes by itself."""

_BACKENDS = {
    "cudnn": "CUDNN_ATTENTION",
    "flash": "FLASH_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
}
KINDS = (DEFAULT, *_BACKENDS)
"""torch's own choice, and what it can be told to take instead. FlashAttention 3 is not among them:
what torch has of it is Python, which compiled code does not call.
"""

TOLERANCES = {"float32": 1e-3, "float16": 5e-3, "bfloat16": 1e-2}
"""Largest error of an attention to be taken, relative to the norm of what float32 gives."""

GAIN = 0.03
"""Share of the default's time that another must save: less is noise, and builds would differ."""

_REPEATS, _ROUNDS, _ROWS = 20, 7, 64

_MOST_BYTES = 1024 * 1024
"""A file larger than this was not written here."""


# --- values -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Operands:
    """Queries [B,heads,S,d], of keys and values the number of tokens, and the dtype of all."""

    query: tuple[int, ...]
    keys: int
    dtype: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The kind that was chosen for some operands, and why: each kind's seconds and its error to
    float32, or in ``refused`` the reason why it cannot be taken.
    """

    attention: str
    operands: Operands
    seconds: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it is written beside the compiled blocks; milliseconds."""
        return {
            "attention": self.attention,
            "query": list(self.operands.query),
            "keys": self.operands.keys,
            "dtype": self.operands.dtype,
            "milliseconds": {name: round(1e3 * value, 5) for name, value in self.seconds.items()},
            "errors": {name: float(f"{value:.3g}") for name, value in self.errors.items()},
            "refused": dict(self.refused),
        }


class Trial(Protocol):
    """A device that attention can be tried on. Both raise RuntimeError for a kind that it lacks."""

    def error(self, kind: str, operands: Operands) -> float:
        """Of ``kind`` on random values, relative to the norm of what float32 gives."""
        ...

    def seconds(self, kind: str, operands: Operands) -> float:
        """Of one call, launches aside."""
        ...


# --- choosing ---------------------------------------------------------------------------------


def choose(operands: Operands, trial: Trial) -> Choice:
    """The fastest kind that is exact, and torch's own where none saves :data:`GAIN` of its time."""
    limit = TOLERANCES[operands.dtype]
    seconds: dict[str, float] = {}
    errors: dict[str, float] = {}
    refused: dict[str, str] = {}
    for kind in KINDS:
        try:
            errors[kind] = trial.error(kind, operands)
            if errors[kind] <= limit:
                seconds[kind] = trial.seconds(kind, operands)
            else:  # no number at all is no better
                refused[kind] = f"its error {errors.pop(kind):.3g} is over {limit:g}"
        except RuntimeError as error:
            refused[kind] = " ".join(str(error).split())[:200]
    best = min(seconds, key=seconds.__getitem__, default=DEFAULT)
    if DEFAULT in seconds and seconds[best] > (1 - GAIN) * seconds[DEFAULT]:
        best = DEFAULT
    return Choice(
        attention=best, operands=operands, seconds=seconds, errors=errors, refused=refused
    )


def attention_of(layer: Module, signature: GraphSignature) -> Operands | None:
    """What the attention of a layer multiplies when it is called with the inputs of ``signature``;
    None for a layer without, or with several that differ. No memory is touched.
    """
    import torch
    from torch.func import functional_call

    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    held = {name: value.detach().to("meta") for name, value in tensors.items()}
    inputs = tuple(
        torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="meta")
        for spec in signature.inputs
    )
    found: set[Operands] = set()
    with torch.no_grad(), _recorder()(found):
        functional_call(layer, held, inputs)
    return found.pop() if len(found) == 1 else None


@cache
def _recorder() -> Any:
    """A scope within which the operands of every attention are added to a set."""
    import torch
    from torch.overrides import TorchFunctionMode

    untyped: Any = TorchFunctionMode

    class Recorder(untyped):  # type: ignore[misc]
        def __init__(self, found: set[Operands]) -> None:
            super().__init__()
            self.found = found

        def __torch_function__(
            self, function: Any, types: Any, given: tuple[Any, ...] = (), named: Any = None
        ) -> Any:
            if function is torch.nn.functional.scaled_dot_product_attention:
                self.found.add(_operands(*given, **(named or {})))
            return function(*given, **(named or {}))

    return Recorder


def _operands(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Operands:
    dtype = str(query.dtype).removeprefix("torch.")
    return Operands(query=tuple(query.shape), keys=key.shape[-2], dtype=dtype)


@contextmanager
def using(kind: str) -> Iterator[None]:
    """Within it torch takes this kind of attention and no other; what is compiled keeps it."""
    if kind == DEFAULT:
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, _BACKENDS[kind])):
        yield


# --- the file ---------------------------------------------------------------------------------


def write_choices(path: Path, choices: Mapping[str, Choice]) -> None:
    """Add ``choices``, by the names of their pieces, to those of ``path``, in one step. Raises
    OutputNotWritable or DiskFull, and as :func:`read_choices`.
    """
    stored = read_attention(path) if path.exists() else {}
    stored |= {name: choice.to_json() for name, choice in choices.items()}
    with replacing(path) as partial:
        partial.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_choices(path: Path) -> dict[str, str]:
    """The kind of attention of every piece, by the piece's name; none where there is no file.
    Raises EngineFailed for a file that is not as it was written.
    """
    if not path.exists():
        return {}
    return {name: each["attention"] for name, each in read_attention(path).items()}


def read_attention(path: Path) -> dict[str, Any]:
    """What was written of every piece, by its name, as :meth:`Choice.to_json`. Raises as
    :func:`read_choices`.
    """
    try:
        stored = bounded_file(path, most_bytes=_MOST_BYTES)
        kinds = {str(each["attention"]) for each in stored.values()}
        times = [time for each in stored.values() for time in each["milliseconds"].values()]
    except (OSError, ManifestInvalid) as error:
        raise _damaged(f"{path.name} cannot be read: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(f"{path.name} holds something else") from error
    if kinds - set(KINDS):
        raise _damaged(f"{path.name} names the attention {', '.join(sorted(kinds - set(KINDS)))}")
    if not all(isinstance(time, int | float) for time in times):
        raise _damaged(f"{path.name} has times that are no numbers")
    return stored


def _damaged(given: str) -> EngineFailed:
    return EngineFailed(
        given,
        expected=f"for each compiled block one of {', '.join(KINDS)}",
        fix="restore the bundle, or build it again with 'fresco-trt build'",
    )


# --- a GPU ------------------------------------------------------------------------------------


def trial_of(device: str) -> Trial | None:
    """The GPU; None for a CPU, which has one attention and nothing to choose."""
    return CudaTrial() if device == "cuda" else None


class CudaTrial:
    """The current GPU, by CUDA's own clock and replayed graphs: what a host takes to launch is not
    what a kernel takes. Values are laid out as a block's are, tokens before heads, on
    ``device`` (tests have no GPU).
    """

    def __init__(self, device: str = "cuda") -> None:
        self._device = device

    def error(self, kind: str, operands: Operands) -> float:
        """As :class:`Trial`; of the last queries of every head."""
        query, key, value = self._values(operands)
        got = self._call(kind, query, key, value)()[..., -_ROWS:, :].float()
        rows, key, value = query[..., -_ROWS:, :].float(), key.float(), value.float()
        weights = (rows @ key.transpose(-1, -2) * rows.shape[-1] ** -0.5).softmax(dim=-1)
        wanted = weights @ value
        return float((got - wanted).norm() / wanted.norm())

    def seconds(self, kind: str, operands: Operands) -> float:
        """As :class:`Trial`; the median of a few replays of several calls."""
        import torch

        untyped: Any = torch.cuda
        call = self._call(kind, *self._values(operands))
        for _ in range(3):  # a library may search for its plan in the first calls
            call()
        torch.cuda.synchronize()
        graph = untyped.CUDAGraph()
        with untyped.graph(graph):
            for _ in range(_REPEATS):
                call()
        graph.replay()
        taken = []
        for _ in range(_ROUNDS):
            start, end = (untyped.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            taken.append(start.elapsed_time(end) / 1e3 / _REPEATS)
        return float(median(taken))

    @staticmethod
    def _call(kind: str, query: Tensor, key: Tensor, value: Tensor) -> Callable[[], Tensor]:
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        def call() -> Tensor:
            with torch.no_grad(), warnings.catch_warnings(), using(kind):
                warnings.simplefilter("ignore")  # torch warns why a kind cannot be taken
                return scaled_dot_product_attention(query, key, value)

        return call

    def _values(self, operands: Operands) -> Iterable[Tensor]:
        import torch

        batch, heads, queries, width = operands.query
        generator = torch.Generator(self._device).manual_seed(0)
        for tokens in (queries, operands.keys, operands.keys):
            shape = (batch, tokens, heads, width)
            values = torch.randn(shape, generator=generator, device=self._device)
            yield values.to(getattr(torch, operands.dtype)).transpose(1, 2)
