"""What a profile is asked for. Light to import: no engine, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fresco_trt.errors import IncompatibleOptions, PlanError

STEPS, STAGES = "steps", "stages"
"""How a request is drawn: step by step, or each stage in one launch, as a GPU replays them."""

OUT = Path("profile-out")
PROMPT = "a red apple"
REQUESTS, MOST_REQUESTS = 5, 10_000
WARM_UP = 3
"""Requests before any is recorded: engines launch plainly once and are captured by the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for; ``trust_native_code`` and ``verify_key`` as of ``from_bundle``.

    Raises PlanError for no requests or too many, and IncompatibleOptions for another way to draw
    them than :data:`STEPS` and :data:`STAGES`.
    """

    engines: Path
    prompt: str = PROMPT
    seed: int = 0
    requests: int = REQUESTS
    by: str = STEPS
    trust_native_code: bool = False
    verify_key: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.requests <= MOST_REQUESTS:
            raise PlanError(
                f"--requests {self.requests}",
                expected=f"from 1 to {MOST_REQUESTS}",
                fix=f"pass --requests {REQUESTS}",
            )
        if self.by not in (STEPS, STAGES):
            raise IncompatibleOptions(
                f"--by {self.by}", expected=f"{STEPS} or {STAGES}", fix=f"pass --by {STEPS}"
            )
