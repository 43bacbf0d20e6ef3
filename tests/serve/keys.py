"""Keys to sign bundles with, as OpenSSL would write them."""

from __future__ import annotations

from pathlib import Path


def new_keys(folder: Path) -> tuple[Path, Path]:
    """A private and its public ed25519 key, PEM files in a new folder."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.generate()
    folder.mkdir()
    private, public = folder / "KEY.pem", folder / "KEY.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public
