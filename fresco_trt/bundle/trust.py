"""Whether the native code in a bundle may be loaded: the last question before it is.

Digests say that a bundle is whole, not who made it: whoever changes a file can make them right. So
engines that are native code are loaded only if this user built them, if the caller says so, or if
the manifest is signed by a key that the caller knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fresco_trt.bundle.folder import Bundle
from fresco_trt.bundle.own_builds import is_own
from fresco_trt.bundle.signature import check_signature
from fresco_trt.errors import IncompatibleOptions, NativeCodeNotTrusted, error_context
from fresco_trt.files.canonical_json import quoted


@dataclass(frozen=True, kw_only=True, slots=True)
class Trust:
    """What a caller vouches for: with ``native_code``, for whatever code the bundle has; with
    ``verify_key``, for what is signed by the public key in that PEM file, and for nothing else, in
    bundles without native code as well.

    Raises IncompatibleOptions for both, of which one would count for nothing.
    """

    native_code: bool = False
    verify_key: Path | None = None

    def __post_init__(self) -> None:
        if self.native_code and self.verify_key is not None:
            raise IncompatibleOptions(
                "--trust beside --verify-key",
                expected="one of them: a key is asked for to trust nothing else",
                fix="leave --trust out, or --verify-key",
            )


NO_TRUST = Trust()
"""Of somebody who says nothing: what this user built is trusted."""


def require_trust(bundle: Bundle, native_code: Mapping[str, str], trust: Trust) -> None:
    """Let a bundle pass whose engines are of a backend with this ``native_code``, or raise.

    Raises NativeCodeNotTrusted, and for a ``verify_key`` BundleNotSigned or KeyNotUsable.
    """
    with error_context(f"bundle {quoted(str(bundle.folder))}"):
        if trust.verify_key is not None:
            check_signature(bundle, trust.verify_key)
        elif native_code and not trust.native_code and not is_own(bundle.manifest):
            raise NativeCodeNotTrusted(
                f"its engines are native code ({', '.join(native_code.values())}), which can do"
                " whatever you can, and this user did not build them here",
                expected="code that somebody vouches for: digests can be made right by anybody",
                fix="build it here with 'fresco-trt build'; or pass --verify-key FILE, for what its"
                " maker signed; or pass --trust, if you know where it is from",
            )
