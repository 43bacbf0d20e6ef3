"""The points of others, drawn with this model's weights by :mod:`bench.editing_peers`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from bench.editing.engines import Made
from bench.editing_peers import EditingPeers, RegionE, SpotEdit
from fresco_trt.bench.scenes.edit_judge import judged_edits
from fresco_trt.errors import IncompatibleOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.editing.engines import Draw, Engines, Prepared
    from bench.editing.points import EditPoint, PeerSettings

FITTED_EDITS, FITTED_SEED = 7, 9
"""How many edits RegionE's gamma is fitted to, and which: none that is measured."""

BACKEND = "eager"
"""What peers run on, and so everything that they are compared with."""


def check_backend(name: str, points: Sequence[EditPoint]) -> None:
    """Raise IncompatibleOptions for peers beside engines of another library than theirs: seconds
    would compare the libraries.
    """
    if name != BACKEND and any(point.peer is not None for point in points):
        raise IncompatibleOptions(
            f"--backend {name} with SpotEdit and RegionE",
            expected=f"{BACKEND}, on which they run",
            fix="leave --backend out, or name other points with --only",
        )


def peer_draws(engines: Engines, points: Sequence[EditPoint]) -> dict[str, Draw]:
    """What draws the points of peers, by their names."""
    settings = {point.name: point.peer for point in points if point.peer is not None}
    if not settings:
        return {}
    peers = EditingPeers(engines.facts, engines.transformer(), engines.decode, engines.size)

    @cache
    def gamma() -> tuple[float, ...]:
        edits = judged_edits(FITTED_EDITS, FITTED_SEED)
        return peers.fitted_gamma([engines.prepared(edit).conditioning for edit in edits])

    return {name: _draw(peers, _rule(each, gamma)) for name, each in settings.items()}


def _rule(settings: PeerSettings, gamma: Callable[[], tuple[float, ...]]) -> SpotEdit | RegionE:
    if settings.rule == "spotedit":
        return SpotEdit.at(settings.steps)
    if settings.is_fitted:
        return RegionE.at(settings.steps, gamma())
    return RegionE.at(settings.steps)


def _draw(peers: EditingPeers, rule: SpotEdit | RegionE) -> Draw:
    def draw(prepared: Prepared, seed: int) -> Made:
        found = peers.draw(rule, prepared.conditioning, seed)
        return Made(
            pixels=found.pixels,
            seconds=found.seconds,
            engine_seconds=found.engine_seconds,
            flops=found.flops,
            mask=found.mask,
        )

    return draw
