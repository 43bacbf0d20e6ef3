"""A signature over a bundle: ed25519 over the bytes of its manifest, which has all other digests.

Beside the manifest lies ``manifest.sig``, 64 bytes, as OpenSSL writes and checks them, too. Keys
are PEM files. The package that computes it, cryptography, is imported when a key is used.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from fresco_trt.bundle.folder import Bundle, manifest_bytes, open_bundle
from fresco_trt.bundle.manifest import parse_manifest
from fresco_trt.errors import BundleNotSigned, KeyNotUsable, error_context
from fresco_trt.files.atomic_file import writing
from fresco_trt.files.canonical_json import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    quoted,
    require_digest,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

_MOST_BYTES = 16 * 1024
"""A key file larger than this holds no such key."""

NEW_KEY = "openssl genpkey -algorithm ed25519 -out KEY.pem"
NEW_PUBLIC_KEY = "openssl pkey -in KEY.pem -pubout -out KEY.pub"


def sign_bundle(path: str | os.PathLike[str], key: Path) -> tuple[Bundle, str]:
    """Check the bundle at ``path`` and sign it with the private key in the PEM file ``key``, in the
    place of an older signature; the bundle, and the public key as PEM, for those who verify.

    Raises what :func:`~fresco_trt.bundle.folder.open_bundle` raises, KeyNotUsable,
    OutputNotWritable or DiskFull.
    """
    private = _private_key(key)
    bundle = open_bundle(path)
    with error_context(f"bundle {quoted(os.fspath(path))}"):
        _write(bundle.folder, private.sign(_signed(bundle)))
    return bundle, _pem(private.public_key())


def check_signature(bundle: Bundle, key: Path) -> None:
    """Raise BundleNotSigned unless the manifest of ``bundle`` is signed by the one whose public key
    is in the PEM file ``key``; KeyNotUsable for another file.
    """
    public = _public_key(key)
    from cryptography.exceptions import InvalidSignature

    try:
        with (bundle.folder / SIGNATURE_NAME).open("rb") as file:
            public.verify(file.read(_MOST_BYTES), _signed(bundle))
    except FileNotFoundError as error:
        raise _not_signed(f"there is no {SIGNATURE_NAME}", key) from error
    except OSError as error:
        raise _not_signed(f"{SIGNATURE_NAME} cannot be read ({error.strerror})", key) from error
    except InvalidSignature as error:
        raise _not_signed(f"{SIGNATURE_NAME} is not of this key or this manifest", key) from error


def is_signed(bundle: Bundle) -> bool:
    """Whether there is a signature, whoever's."""
    return (bundle.folder / SIGNATURE_NAME).is_file()


def _signed(bundle: Bundle) -> bytes:
    """The bytes that a signature is over: those on disk now, if they are the opened manifest's."""
    data = manifest_bytes(bundle.folder)
    require_digest(MANIFEST_NAME, parse_manifest(data).digest, bundle.manifest.digest)
    return data


def _write(folder: Path, signature: bytes) -> None:
    """Written outside the bundle, where nothing unlisted may lie, and moved into it in one step."""
    between = folder.with_name(f".{folder.name}.{token_hex(8)}.sig")
    with writing(folder / SIGNATURE_NAME):
        try:
            between.write_bytes(signature)
            between.replace(folder / SIGNATURE_NAME)
        finally:
            between.unlink(missing_ok=True)


def _not_signed(given: str, key: Path) -> BundleNotSigned:
    return BundleNotSigned(
        given,
        expected=f"a signature over {MANIFEST_NAME} by the key of {quoted(str(key))}",
        fix="ask whoever built the bundle to sign it with 'fresco-trt sign', or pass their key with"
        " --verify-key",
    )


# --- keys -------------------------------------------------------------------------------------


def _private_key(path: Path) -> Ed25519PrivateKey:
    data = _read(path, NEW_KEY)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    with _as_key(path, "a private ed25519 key as PEM, without a password", NEW_KEY):
        key = load_pem_private_key(data, password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("it is of another algorithm")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    data = _read(path, NEW_PUBLIC_KEY)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    with _as_key(path, "a public ed25519 key as PEM", NEW_PUBLIC_KEY):
        key = load_pem_public_key(data)
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("it is of another algorithm")
    return key


def _pem(key: Ed25519PublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def _read(path: Path, how: str) -> bytes:
    if find_spec("cryptography") is None:
        raise KeyNotUsable(
            "signatures need the Python package cryptography, which is not installed",
            expected="it beside fresco-trt",
            fix="pip install 'fresco-trt[sign]'",
        )
    try:
        if not path.is_file():  # reading a pipe would wait for whoever writes into it
            reason = os.strerror(errno.EISDIR if path.is_dir() else errno.ENOENT)
            raise OSError(errno.ENOENT, reason)
        with path.open("rb") as file:
            return file.read(_MOST_BYTES)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise _unusable(path, f"it cannot be read ({said})", "a key file", how) from error


@contextmanager
def _as_key(path: Path, expected: str, how: str) -> Iterator[None]:
    """What the package says of a file that holds no such key, as KeyNotUsable."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        yield
    except TypeError as error:  # as it says that a key has a password
        raise _unusable(path, "it is encrypted", expected, how) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _unusable(path, str(error).split(".")[0], expected, how) from error


def _unusable(path: Path, why: str, expected: str, how: str) -> KeyNotUsable:
    return KeyNotUsable(
        f"the key {quoted(str(path))}: {why}", expected=expected, fix=f"make one with '{how}'"
    )
