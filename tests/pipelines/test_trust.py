"""Laws of trust: native code is loaded if this user built it, or somebody vouches for it.

The engines here are a few lines of C++ whose constructor says that it ran.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fresco_trt
from fresco_trt.bundle import open_bundle
from fresco_trt.bundle.own_builds import is_own, remember
from fresco_trt.bundle.signature import sign_bundle
from fresco_trt.bundle.trust import Trust
from fresco_trt.cli import main as cli
from fresco_trt.errors import (
    BundleNotSigned,
    EngineFailed,
    FileUnexpected,
    FrescoError,
    IncompatibleOptions,
    InvalidArgument,
    KeyNotUsable,
    NativeCodeNotTrusted,
    OutputNotWritable,
)
from fresco_trt.lower.build import BuildRequest, run
from fresco_trt.verify import verify_bundle
from tests.hostile import native
from tests.hostile.digests import make_right, manifest_of, replaced

cryptography = pytest.importorskip("cryptography")

from_bundle = fresco_trt.FrescoPipeline.from_bundle


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of a user who has built nothing."""
    monkeypatch.setenv("FRESCO_TRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def hostile(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inductor bundle from a stranger."""
    folder = tmp_path_factory.mktemp("stranger") / "bundle"
    shutil.copytree(demo_bundle, folder, copy_function=os.link)
    native.constructor(folder)
    return folder


@pytest.fixture
def stranger(hostile: Path, cache: Path) -> Path:
    """It, opened by somebody who built nothing; its code has not run in this test."""
    mark(hostile).unlink(missing_ok=True)
    return hostile


mark = native.mark_of


def copied(bundle: Path, folder: Path) -> Path:
    return shutil.copytree(bundle, folder / "copy", copy_function=os.link)


def load(door: str, bundle: Path, pipe: Any, **trust: bool) -> None:
    """Have engines loaded, in each way that there is."""
    if door == "from_bundle":
        from_bundle(bundle, **trust)
    elif door == "over":
        vouched = Trust(native_code=trust.get("trust_native_code", False))
        fresco_trt.FrescoPipeline.over(open_bundle(bundle), vouched)
    elif door == "verify":
        verify_bundle(bundle, **trust)
    else:
        fresco_trt.enable(pipe, engines=bundle, **trust)


# --- who is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["from_bundle", "over", "verify", "enable"])
def test_a_strangers_native_code_is_not_run_and_with_trust_it_is(
    stranger: Path, door: str, pipe: Any
) -> None:
    with pytest.raises(NativeCodeNotTrusted, match="compiled shared objects") as caught:
        load(door, stranger, pipe)
    assert not mark(stranger).exists()
    said = str(caught.value)
    assert all(way in said for way in ("'fresco-trt build'", "verify", "trust"))
    assert len(said) < 600
    # What these lines of C++ are no engine for is seen once they have run.
    with pytest.raises(EngineFailed):
        load(door, stranger, pipe, trust_native_code=True)
    assert mark(stranger).exists()


def test_commands_refuse_in_their_words_and_take_trust(
    stranger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = ["generate", "--engines", str(stranger), "--prompt", "a", "--out", f"{tmp_path}/a.png"]
    for command in (draw, ["verify", "--engines", str(stranger)]):
        assert cli.main(command) == 2
        said = capsys.readouterr().err
        assert "--trust" in said
        assert "--verify-key FILE" in said
        assert "trust_native_code" not in said
        assert not mark(stranger).exists()
    for command in (draw, ["verify", "--engines", str(stranger)]):
        assert cli.main([*command, "--trust"]) == 1
        assert mark(stranger).exists()
        mark(stranger).unlink()
    with pytest.raises(NativeCodeNotTrusted, match=r"verify_key=FILE.*trust_native_code=True"):
        from_bundle(stranger)


def test_engines_that_are_data_take_no_trust(demo_bundle: Path, cache: Path) -> None:
    from_bundle(demo_bundle).close()
    from_bundle(demo_bundle, trust_native_code=True).close()


def test_wrong_arguments_are_refused(demo_bundle: Path, tmp_path: Path, pipe: Any) -> None:
    with pytest.raises(InvalidArgument, match="trust_native_code='yes'"):
        from_bundle(demo_bundle, trust_native_code="yes")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="verify_key=3"):
        from_bundle(demo_bundle, verify_key=3)  # type: ignore[arg-type]
    with pytest.raises(IncompatibleOptions, match="trust_native_code=True beside verify_key"):
        from_bundle(demo_bundle, trust_native_code=True, verify_key=tmp_path)
    with pytest.raises(IncompatibleOptions, match="without engines"):
        fresco_trt.enable(pipe, trust_native_code=True)


# --- what this user built ---------------------------------------------------------------------


def test_what_was_built_here_is_loaded_and_nothing_beside_it(
    stranger: Path, cache: Path, tmp_path: Path
) -> None:
    remember(open_bundle(stranger).manifest)
    with pytest.raises(EngineFailed):
        from_bundle(stranger)
    assert mark(stranger).exists()
    other = copied(stranger, tmp_path)
    replaced(other / "blocks" / "more.pt2", b"x")
    make_right(other)
    with pytest.raises(NativeCodeNotTrusted):
        from_bundle(other)


def test_a_build_is_remembered_and_no_one_elses_is_reused(
    stranger: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the right key: whoever writes a manifest writes that, too."""
    from fresco_trt.backends.eager import EagerBackend

    monkeypatch.setattr(EagerBackend, "native_code", {".safetensors": "made up"})
    asked = BuildRequest(
        model="flux-tiny", stages=1, steps=1, size=(64, 64), backend="eager", out=tmp_path / "own"
    )
    built = run(asked)
    from_bundle(tmp_path / "own").close()
    assert run(asked).reused
    shutil.rmtree(cache)
    with pytest.raises(NativeCodeNotTrusted):
        from_bundle(tmp_path / "own")
    again = run(asked)
    assert again.state == "rebuilt: the old bundle has native code that this user did not build"
    assert again.bundle.manifest.key == built.bundle.manifest.key
    from_bundle(tmp_path / "own").close()


def others_folder(cache: Path, digest: str) -> None:
    (cache / "built").chmod(0o777)


def others_mark(cache: Path, digest: str) -> None:
    (cache / "built" / digest).chmod(0o666)


def linked_folder(cache: Path, digest: str) -> None:
    (cache / "built").rename(cache / "elsewhere")
    (cache / "built").symlink_to(cache / "elsewhere")


def linked_mark(cache: Path, digest: str) -> None:
    (cache / "built" / digest).unlink()
    (cache / "built" / digest).symlink_to("/etc/hostname")


@pytest.mark.parametrize("change", [others_folder, others_mark, linked_folder, linked_mark])
def test_what_others_could_have_noted_counts_for_nothing(
    stranger: Path, cache: Path, change: Callable[[Path, str], None]
) -> None:
    manifest = open_bundle(stranger).manifest
    remember(manifest)
    assert is_own(manifest)
    change(cache, manifest.digest)
    assert not is_own(manifest)


def test_what_is_another_users_counts_for_nothing(
    stranger: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = open_bundle(stranger).manifest
    remember(manifest)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert not is_own(manifest)
    with pytest.warns(UserWarning, match="will take trust"):
        remember(manifest)


def test_a_cache_that_cannot_be_written_is_a_warning(stranger: Path, cache: Path) -> None:
    cache.write_text("a file")
    with pytest.warns(UserWarning, match="could not be noted"):
        remember(open_bundle(stranger).manifest)
    with pytest.raises(NativeCodeNotTrusted):
        from_bundle(stranger)


# --- what somebody signed ---------------------------------------------------------------------


def keys(folder: Path) -> tuple[Path, Path]:
    """A private and its public key."""
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private, public = folder / "KEY.pem", folder / "KEY.pub"
    folder.mkdir(exist_ok=True)
    private.write_bytes(
        key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def test_a_signature_vouches_for_these_bytes_by_this_key(
    stranger: Path, demo_bundle: Path, tmp_path: Path
) -> None:
    private, public = keys(tmp_path / "a")
    _, another = keys(tmp_path / "b")
    bundle = copied(stranger, tmp_path)
    with pytest.raises(BundleNotSigned, match=r"there is no manifest\.sig"):
        from_bundle(bundle, verify_key=public)
    _, told = sign_bundle(bundle, private)
    assert told == public.read_text()
    assert (bundle / "manifest.sig").stat().st_size == 64
    with pytest.raises(BundleNotSigned, match="not of this key"):
        from_bundle(bundle, verify_key=another)
    with pytest.raises(NativeCodeNotTrusted):  # a signature of somebody vouches for nobody
        from_bundle(bundle)
    assert not mark(bundle).exists()
    with pytest.raises(EngineFailed):
        from_bundle(bundle, verify_key=public)
    assert mark(stranger).exists()
    # Digests made right again, and the signature of before.
    replaced(bundle / "blocks" / "more.pt2", b"x")
    make_right(bundle)
    with pytest.raises(BundleNotSigned):
        from_bundle(bundle, verify_key=public)
    sign_bundle(bundle, private)
    open_bundle(bundle)
    (bundle / "manifest.sig").write_bytes(bytes(63))
    with pytest.raises(FileUnexpected, match="63 bytes"):
        open_bundle(bundle)


def test_a_key_is_asked_of_bundles_that_are_data_as_well(demo_bundle: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    bundle = copied(demo_bundle, tmp_path)
    with pytest.raises(BundleNotSigned):
        from_bundle(bundle, verify_key=public)
    sign_bundle(bundle, private)
    from_bundle(bundle, verify_key=public).close()


def test_the_commands_sign_inspect_and_rebuild(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = keys(tmp_path)
    bundle = copied(demo_bundle, tmp_path)
    assert cli.main(["sign", "--engines", str(bundle), "--key", str(private)]) == 0
    assert public.read_text().strip() in capsys.readouterr().out
    assert cli.main(["inspect", str(bundle), "--verify-key", str(public)]) == 0
    assert "signature: of the given key" in capsys.readouterr().out
    assert cli.main(["inspect", str(bundle), "--verify-key", str(private)]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["KEY.pem", "KEY.pub", "copy"]
    # A signed bundle is one that a build may replace.
    manifest = manifest_of(bundle)
    make_right(bundle, manifest | {"key": "0" * 64})
    run(
        BuildRequest(
            model="flux-tiny", stages=1, steps=1, size=(64, 64), backend="eager", out=bundle
        )
    )
    assert not (bundle / "manifest.sig").exists()


def test_inspect_says_which_bundles_have_native_code(
    stranger: Path, demo_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def inspected(bundle: Path) -> Any:
        assert cli.main(["inspect", str(bundle), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    found = inspected(stranger)
    assert found["native_code"]["kinds"] == ["compiled shared objects"]
    assert found["native_code"]["trusted_by"] is None
    assert len(found["native_code"]["files"]) == len(list(stranger.glob("blocks/*.pt2")))
    assert (inspected(demo_bundle)["native_code"], found["signature"]) == (None, None)
    assert cli.main(["inspect", str(stranger)]) == 0
    assert "takes --trust or --verify-key" in capsys.readouterr().out
    assert not mark(stranger).exists()


def test_keys_that_are_none_are_named(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = keys(tmp_path)
    (tmp_path / "text").write_text("no key")
    os.mkfifo(tmp_path / "pipe")
    wrong = [tmp_path / name for name in ("none", "text", "pipe", "")]
    for path in (*wrong, private):
        with pytest.raises(KeyNotUsable, match=r"openssl pkey"):
            from_bundle(demo_bundle, verify_key=path)
    for path in (*wrong, public):
        with pytest.raises(KeyNotUsable, match=r"openssl genpkey"):
            sign_bundle(demo_bundle, path)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for call in (
        lambda: from_bundle(demo_bundle, verify_key=public),
        lambda: sign_bundle(demo_bundle, private),
    ):
        with pytest.raises(KeyNotUsable, match=r"pip install 'fresco-trt\[sign\]'"):
            call()


def test_a_bundle_that_cannot_be_written_stays_unsigned(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, _ = keys(tmp_path)
    bundle = copied(demo_bundle, tmp_path)

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputNotWritable, match="Permission denied"):
        sign_bundle(bundle, private)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["KEY.pem", "KEY.pub", "copy"]
    assert issubclass(KeyNotUsable, FrescoError)
