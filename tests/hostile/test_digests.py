"""The maker of right digests is believed by what opens bundles."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fresco_trt.bundle import open_bundle
from fresco_trt.errors import BundleError
from tests.hostile.digests import make_right, replaced


def test_a_changed_bundle_is_right_again_and_its_original_untouched(
    eager_bundle: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(eager_bundle, tmp_path / "copy", copy_function=os.link)
    replaced(folder / "transformer" / "config.json", b"{}")
    replaced(folder / "pipeline" / "more" / "file", b"x")
    with pytest.raises(BundleError):
        open_bundle(folder)
    make_right(folder)
    paths = {file.path for file in open_bundle(folder).manifest.files}
    assert paths > {file.path for file in open_bundle(eager_bundle).manifest.files}
