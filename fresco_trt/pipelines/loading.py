"""From a bundle's folder to its entered engines: opened, found fit, trusted, loaded.

What every door that draws with a bundle goes through. Native code is loaded in one place,
:func:`load_runners`, which asks for trust first.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

from fresco_trt.bundle.trust import NO_TRUST, Trust, require_trust
from fresco_trt.errors import IncompatibleOptions, PlanError, error_context
from fresco_trt.pipelines.cost import Cost, Meter
from fresco_trt.pipelines.device_memory import check_device_memory, free_device_bytes
from fresco_trt.pipelines.lazy import LazyRunner
from fresco_trt.plan.arguments import flag, optional, place

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from torch import Tensor

    from fresco_trt.backends.base import Backend, Runner
    from fresco_trt.bundle import Bundle


def trust_of(trust_native_code: bool, verify_key: str | Path | None) -> Trust:
    """What the arguments of a public call vouch for. Raises InvalidArgument, and
    IncompatibleOptions for both.
    """
    return Trust(
        native_code=flag("trust_native_code", trust_native_code),
        verify_key=optional(place, "verify_key", verify_key),
    )


def opened(path: str | os.PathLike[str], trust: Trust = NO_TRUST) -> Bundle:
    """A bundle that can be drawn with here, and is trusted so far; nothing of it is loaded.

    Raises a BundleError leaf, and InvalidArgument for what is no path.
    """
    from fresco_trt.backends import backend
    from fresco_trt.bundle import open_bundle
    from fresco_trt.pipelines.environment import check_environment
    from fresco_trt.pipelines.sizes import check_sizes

    given = place("path", path)
    bundle = open_bundle(given, sizes=check_sizes, environment=check_environment)
    require_trust(bundle, backend(bundle.manifest.backend.name).native_code, trust)
    return bundle


class Engines(dict[str, "Runner"]):
    """The entered runners of a bundle by the engine's name, and what loading each of them took.

    `costs` has those that are loaded: of lazy ones, those that some request has needed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[str, Cost] = {}
        self._loading = Lock()

    def enter(self, name: str, runner: Runner, scope: ExitStack) -> None:
        """Load the engine and note what it took."""
        with error_context(f"engine {name}"):
            meter = Meter()
            scope.enter_context(runner)
            self.costs[name] = meter.cost()

    def enter_late(self, bundle: Bundle, name: str, runner: Runner, scope: ExitStack) -> None:
        """As `enter`, where a request has come to it: of the files that were checked, or none.

        Raises BundleChanged, before native code runs that is not what was checked.
        """
        late = error_context("loaded when a request came to it")
        with self._loading, late, bundle.unchanged():
            bundle.check_unchanged()
            self.enter(name, runner, scope)


def load_runners(
    bundle: Bundle,
    library: Backend,
    scope: ExitStack,
    trust: Trust = NO_TRUST,
    *,
    lazy: bool = False,
) -> Engines:
    """One entered runner for each engine of a bundle, by engine name; `scope` frees them.

    With `lazy` an engine is loaded by its first call, which may raise what loading raises. Raises
    as :func:`~fresco_trt.bundle.trust.require_trust`, before anything of it is loaded, and
    BundleChanged before any native code runs that is not what was checked.
    """
    require_trust(bundle, library.native_code, trust)
    if library.describe().device == "cuda":
        check_device_memory(bundle, free_device_bytes())
    engines = Engines()
    for record in bundle.manifest.engines:
        with error_context(f"engine {record.name}"):
            engines[record.name] = library.load(bundle.folder, record)
    bundle.check_unchanged()
    for name, runner in engines.items():
        if lazy:
            late = LazyRunner(runner, partial(engines.enter_late, bundle, name))
            engines[name] = scope.enter_context(late)
        else:
            engines.enter(name, runner, scope)
    return engines


def load_contexts(
    bundle: Bundle,
    library: Backend,
    scope: ExitStack,
    trust: Trust = NO_TRUST,
    *,
    lazy: bool = False,
    contexts: int = 1,
) -> tuple[Engines, ...]:
    """As :func:`load_runners`, so many times over the same engines: runners with their own inputs
    and outputs, and one copy of the weights.

    Raises PlanError for less than one, IncompatibleOptions for more of a library that has one only.
    """
    if contexts < 1:
        raise PlanError(
            f"--contexts {contexts}", expected="1 or more", fix="pass how many requests run at once"
        )
    facts = library.describe()
    if contexts > 1 and not facts.contexts:
        raise IncompatibleOptions(
            f"--contexts {contexts} with the backend {facts.name} on {facts.device}",
            expected="1: its engines run one request at a time",
            fix="leave --contexts out, and requests wait for their turn; or open the bundle again",
        )
    loaded = (load_runners(bundle, library, scope, trust, lazy=lazy) for _ in range(contexts))
    return tuple(loaded)


def basis_of(bundle: Bundle, device: str) -> Tensor | None:
    """The SVD basis [H,k] of a bundle whose cache needs one; raises CalibrationError
    for those of other weights.
    """
    cache, model = bundle.plan.cache, bundle.manifest.model
    if cache is None or not cache.traits.needs_basis:
        return None
    from fresco_trt.bundle.svd_basis import BASIS_FILE, check_basis, read_basis
    from fresco_trt.models.registry import model_facts

    basis = read_basis(bundle.folder / BASIS_FILE)
    hidden = model_facts(model.name).hidden
    check_basis(basis, model=model.name, weights_sha256=model.weights_sha256, hidden=hidden)
    return basis.directions.to(device)
