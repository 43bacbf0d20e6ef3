"""Libraries that draw bars and report of their own, kept quiet while they load."""

from __future__ import annotations

import logging as python_logging
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


@contextmanager
def no_report() -> Iterator[None]:
    """What diffusers and transformers log of a checkpoint's names is told in an error instead."""
    loggers = [python_logging.getLogger(name) for name in ("diffusers", "transformers")]
    before = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(python_logging.CRITICAL)
        yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)
