"""How long each kernel took on this GPU, kept from one TensorRT build to the next.

TensorRT chooses among kernels by timing them, which is most of a build's time; what it measured is
good for every later build with the same version on the same kind of GPU. Several builds may share
the file: each adds what it measured under a lock, which is not held while one builds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_LOG = logging.getLogger("fresco_trt.tensorrt")


@contextmanager
def kept_timings(config: Any, path: Path | None) -> Iterator[None]:
    """Within the scope ``config`` builds with the timings at ``path``, which then has its own too.

    Without a path nothing is kept. A file that the library does not take counts as none, and one
    that cannot be written costs the next build its time, not this one its engine: both are warned
    of. What a build measured that failed is not kept.
    """
    if path is None:
        yield
        return
    cache = config.create_timing_cache(_stored(path))
    if cache is None or not config.set_timing_cache(cache, False):
        _LOG.warning("%s holds no timings that this library takes; measuring anew", path)
        config.set_timing_cache(config.create_timing_cache(b""), False)
    yield
    try:
        _add(config, path)
    except OSError as error:
        _LOG.warning("timings are not kept in %s: %s", path, error)


def _stored(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _add(config: Any, path: Path) -> None:
    """Join the measurements of ``config`` with those that others stored meanwhile."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        mine = config.get_timing_cache()
        others = config.create_timing_cache(_stored(path))
        if others is not None:
            mine.combine(others, False)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_bytes(memoryview(mine.serialize()))
        partial.replace(path)
