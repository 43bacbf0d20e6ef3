"""Whether the other engine libraries accept this card: what they say, and a trial of each.

The trial is the demo model's smallest graph, built for this card, loaded and run. Whatever a
library refuses is kept in its own words.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.gpu.engines import example_inputs
from fresco_trt.backends import backend
from fresco_trt.backends.base import BuildOptions, StageGraph
from fresco_trt.backends.comparing import output_error
from fresco_trt.bench.engines import Engine
from fresco_trt.bench.instrument import said
from fresco_trt.errors import FrescoError
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.signatures import bypass_signature

if TYPE_CHECKING:
    from fresco_trt.backends.base import Backend

OTHERS = ("tensorrt-rtx", "tensorrt")
TOKENS = 4


def examine_library(name: str, capability: str | None) -> dict[str, Any]:
    """What a library says of this machine, and how far the trial got: ``built``, ``ran`` and
    ``relative`` (its error against eager), or ``refused`` with the library's words.

    ``capability`` is the card's ("sm90"), None where there is none.
    """
    library = backend(name)
    facts = library.describe()
    found: dict[str, Any] = {
        "name": name,
        "version": facts.version,
        "targets": list(facts.targets),
        "missing": [{"what": each.what, "fix": each.fix} for each in library.check()],
        "built": False,
        "ran": False,
        "relative": None,
        "refused": None,
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            _try(library, _targets(facts.targets, capability), Path(folder), found)
        except Exception as error:  # a library may fail in any way on a card it does not know
            named = f"{type(error).__name__}: " if isinstance(error, FrescoError) else ""
            found["refused"] = named + said(error)
    return found


def _targets(known: tuple[str, ...], capability: str | None) -> tuple[str, ...]:
    """The card itself where the library takes targets, or the newest that it knows."""
    if not known:
        return ()
    return known[-1:] if capability is None else (capability,)


def _try(library: Backend, targets: tuple[str, ...], folder: Path, found: dict[str, Any]) -> None:
    from fresco_trt.lower.export import export_stages

    signature = bypass_signature(FLUX_TINY, TOKENS, FLUX_TINY.text_tokens)
    transformer = random_transformer(FLUX_TINY, layers=(1, 1))
    graph = StageGraph(
        name="trial",
        family="flux",
        signature=signature,
        module=graph_from_signature(transformer, signature),
        onnx=None,
        weights=None,
        source=folder,
    )
    if found["version"] is not None:
        (graph,) = export_stages([graph], folder / "graphs")
    options = BuildOptions(folder=folder, targets=targets)
    files = library.build(graph, options)
    engine = Engine(name="trial", family="flux", files=files, signature=signature)
    found["built"] = True
    inputs = example_inputs(signature, "cpu")
    (wanted,) = graph.module(*inputs.values())
    with library.load(folder, engine) as runner:
        got = runner(inputs)["velocity"]
        found["ran"] = True
        found["relative"] = output_error("trial", "velocity", got, wanted).to_json()["relative"]
