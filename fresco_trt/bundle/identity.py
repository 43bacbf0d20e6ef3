"""What a bundle was made from, as its manifest tells it, and the build key of that.

Between the manifest and those who compare: a build, which reuses a bundle or says what differs, and
an opener, to whom one label of a manifest changed by hand shows in the key of them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fresco_trt.errors import ManifestInvalid
from fresco_trt.files.canonical_json import REBUILD, build_key

if TYPE_CHECKING:
    from fresco_trt.bundle.manifest import Manifest


def told_identity(manifest: Manifest) -> dict[str, Any]:
    """Everything that went into the build, by name: the build key is taken over just this."""
    about, target, options = manifest.backend, manifest.backend.target, manifest.built.options
    machine = {"kind of machine": options["machine"]} if "machine" in options else {}
    # Named only where it is more than one: bundles from before there was a choice keep their keys.
    batch = {"batch": target.batch} if target.batch != 1 else {}
    return {
        "model": manifest.model.name,
        "weights": manifest.model.weights_sha256,
        "plan": manifest.plan.to_json(),
        "SVD basis": options.get("svd_basis"),
        "text length": manifest.text_tokens,
        "precision": manifest.precision,
        "quantisation": options.get("quantisation"),
        "backend": [about.name, about.library, about.library_version],
        "targets": list(target.gpus),
        "layout": target.layout,
        "weight streaming": target.stream_weights,
        "prompt encoders or decoder": manifest.pipeline.digest,
        "package versions": options.get("packages"),
        **machine,
        **batch,
    }


def check_key(manifest: Manifest) -> None:
    """Raise ManifestInvalid unless the key is that of what the manifest says: model, weights, plan,
    precision, backend and target belong together as they were built.
    """
    key = build_key(told_identity(manifest))
    if key != manifest.key:
        raise ManifestInvalid(
            f"key is {manifest.key[:12]}..., and what the manifest says has {key[:12]}...",
            expected="the labels that the bundle was built with",
            fix=f"do not use this bundle; {REBUILD}",
        )
