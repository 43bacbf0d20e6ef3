"""Libraries that draw bars of their own, kept quiet while they load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def no_bar() -> Iterator[None]:
    """transformers draws a bar for each model it loads or saves; its hook is put back after."""
    from transformers.utils import logging

    def bare(factory: Any, arguments: Any, options: Any) -> Any:
        return factory(*arguments, **{**options, "disable": True})

    before = logging.set_tqdm_hook(bare)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
