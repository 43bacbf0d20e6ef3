"""Whether what a pipeline would run is diffusers' own code: forwards, processors, schedulers.

Under :mod:`fresco_trt.pipelines.diffusers.fit`. Stage graphs call a transformer's parts and not its
``forward``, and engines call none of it. What somebody put in a place that is not called would be
lost without a word, so each part is compared with the same part of a new transformer of diffusers,
made from the same configuration on the meta device.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from torch.nn import Module

# What may differ: neither changes what is drawn without gradients, and fused projections are
# parameters, which have a digest.
_FREE = {"training", "gradient_checkpointing", "fused_projections"}
HOOKED = "HookRegistry.register_hook.<locals>.create_new_forward.<locals>.new_forward"
"""What diffusers' hooks put in the place of a module's forward."""
_SIMPLE = (bool, int, float, str, tuple, list, type(None))


# --- code -------------------------------------------------------------------------------------


def is_own(kind: type, method: str) -> bool:
    """Whether a method of a class is the one that diffusers or torch ships, decorators included.

    A function's code knows where it was written, whatever names were put on the function later.
    """
    owner = next((each for each in kind.__mro__ if method in vars(each)), None)
    function = None if owner is None else vars(owner)[method]
    return owner is not None and _is_shipped(function, f"{owner.__qualname__}.{method}")


def _is_shipped(function: Any, name: str) -> bool:
    while True:
        code = getattr(function, "__code__", None)
        if code is None or not code.co_filename.startswith(_folders()):
            return False
        if not hasattr(function, "__wrapped__"):
            return bool(code.co_qualname == name)
        function = function.__wrapped__


def foreign_functions(kind: type, method: str) -> Iterator[str]:
    """Names of the functions that a shipped method calls and that somebody put into its module."""
    function = inspect.unwrap(getattr(kind, method))
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if callable(value) and not isinstance(value, type) and not _is_shipped(value, name):
            yield name


@lru_cache(maxsize=1)
def _folders() -> tuple[str, ...]:
    import diffusers
    import torch

    return tuple(f"{Path(str(each.__file__)).parent}/" for each in (diffusers, torch))


def foreign_methods(thing: Any) -> Iterator[str]:
    """Names of the methods of an object that are not those its class was shipped with: put on the
    object, or on the class.
    """
    kind = type(thing)
    for name, value in vars(thing).items():
        if callable(value) and hasattr(kind, name):
            yield name
    for name, value in vars(kind).items():
        function = value.fget if isinstance(value, property) else value
        runs = callable(function) or hasattr(type(function), "__get__")
        if runs and not _is_shipped(function, f"{kind.__qualname__}.{name}"):
            yield name


# --- the parts of a transformer ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """A part of a transformer as diffusers makes it: its class, its simple attributes, the class
    of its attention processor and the parts that it has itself.
    """

    path: str
    kind: type
    values: Mapping[str, object]
    processor: type | None
    parts: Mapping[str, Part]

    @classmethod
    def of(cls, module: Module, path: str = "") -> Self:
        """Those of a module that is new."""
        simple = (
            (name, _listed(value))
            for name, value in vars(module).items()
            if name[0] != "_" and name not in _FREE and isinstance(value, _SIMPLE)
        )
        processor = getattr(module, "processor", None)
        prefix = f"{path}." if path else ""
        children = module.named_children()
        return cls(
            path=path,
            kind=type(module),
            values=dict(simple),
            processor=None if processor is None else type(processor),
            parts={name: cls.of(child, prefix + name) for name, child in children},
        )


def new_transformer(kind: str, config: Mapping[str, Any]) -> Part:
    """A transformer of diffusers' class ``kind`` as it is new."""
    return _new(kind, json.dumps(config, sort_keys=True))


@lru_cache(maxsize=4)
def _new(kind: str, config: str) -> Part:
    import diffusers
    import torch

    with torch.device("meta"):
        return Part.of(getattr(diffusers, kind)(**json.loads(config)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """Parts are compared that have parts of their own, with their attention processors, and those
    that nothing calls, by their paths ``uncalled``. Single layers are left to whoever calls them
    (they may be a LoRA's, or quantised), unless ``whole`` asks for them too. ``hooks`` are names of
    hooks of diffusers that a part may have.
    """

    uncalled: tuple[str, ...] = ()
    whole: bool = False
    hooks: frozenset[str] = frozenset()
    known: dict[type, bool] = field(default_factory=dict)

    def differences(self, ours: Any, new: Part) -> Iterator[str]:
        """What a module has in another way than a new one, one clause each."""
        if not (self.whole or new.parts or new.path in self.uncalled):
            return
        ours = ours._modules.get("_orig_mod", ours)  # a block that was compiled
        what = f"a transformer whose {new.path}" if new.path else "a transformer that"
        kind = type(ours)
        if kind is not new.kind:
            name = f"{kind.__module__}.{kind.__qualname__}"
            yield f"{what} is of the class {name}, not diffusers' own {new.kind.__name__}"
            return
        if not (self._is_own(kind) and _keeps_forward(ours, kind, self.hooks)):
            yield f"{what} has a forward of its own"
        if ours._forward_hooks or ours._forward_pre_hooks:
            yield f"{what} has hooks of its own"
        for name, value in new.values.items():
            found = getattr(ours, name, None)
            if _listed(found) != value:
                yield f"{what} has {name}={found!r}, not {value!r}"
        if new.processor is not None:
            yield from _foreign_processor(ours.processor, new.processor, what)
        yield from self._below(ours._modules, new, what)

    def _below(self, ours: Mapping[str, Any], new: Part, what: str) -> Iterator[str]:
        if _is_list(new.kind) and len(ours) > len(new.parts):
            yield f"{what} has {len(ours)} parts, not {len(new.parts)}"
        for name, part in new.parts.items():
            if ours.get(name) is None:
                yield f"{what} has no {name}"
            else:
                yield from self.differences(ours[name], part)

    def _is_own(self, kind: type) -> bool:
        if kind not in self.known:
            self.known[kind] = is_own(kind, "forward") or _is_list(kind)
        return self.known[kind]


def _keeps_forward(module: Any, kind: type, hooks: frozenset[str]) -> bool:
    """Whether a module has its class's forward; hooks that were removed leave it on the module, and
    those of diffusers, of the names that may be there, hold it.
    """
    found = vars(module).get("forward")
    registry = getattr(module, "_diffusers_hook", None)
    if registry is not None and registry.hooks and registry.hooks.keys() <= hooks:
        if not _is_shipped(getattr(found, "func", None), HOOKED):
            return False
        first = registry._fn_refs[0]
        found = first.forward if first.original_forward is None else first.original_forward
    if found is None:
        return True
    own = getattr(found, "__self__", None) is module
    return own and found.__func__ is getattr(kind, "forward", None)


def _foreign_processor(ours: Any, new: type, what: str) -> Iterator[str]:
    kind = type(ours)
    if kind is not new:
        yield f"{what} has a processor of the class {kind.__name__}"
    elif not is_own(kind, "__call__"):
        yield f"{what} has a processor with a call of its own"
    elif getattr(ours, "_parallel_config", None) is not None:
        yield f"{what} is one part of several in parallel"


def _is_list(kind: type) -> bool:
    """Whether a class is that of a list of modules, which is never called."""
    import torch

    return issubclass(kind, torch.nn.ModuleList)


def _listed(value: object) -> object:
    """A configuration from a file has lists where one from Python has tuples."""
    return list(value) if isinstance(value, tuple) else value
