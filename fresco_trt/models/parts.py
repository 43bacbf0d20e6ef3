"""Prompt encoders, tokenizers and decoders as their own libraries build them, whole or not at all.

Between a pipeline folder and the families' ``parts.py``, which say of which classes theirs are. The
libraries make up what a file lacks, leave out what has no place, and open the files that a file
names. So an encoder is given its configuration and its tensors, read here, and no path; the
decoder's files are looked at before diffusers opens them; and what a library reports of the names
is an error.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fresco_trt.errors import FrescoError, UnsupportedWeights, WeightsNotFound
from fresco_trt.models.checkpoint import (
    ENCODER_NAME,
    WEIGHTS_NAME,
    check_plain,
    counted,
    read_stand_ins,
    read_weights,
    weight_files,
)
from fresco_trt.models.extent import (
    MAX_TOKENIZER_BYTES,
    check_extent,
    check_size,
    check_tokenizer,
    read_object,
)
from fresco_trt.models.plain import check_unscaled
from fresco_trt.models.quiet import no_bar, no_report
from fresco_trt.models.settings import Settings, TokenizerSettings, TokenSettings, checked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

REBUILD = "build the bundle again from a complete pipeline folder"

_CODE = ("attn_implementation", "_attn_implementation", "auto_map")
"""Keys by which a configuration names code that a library would fetch and run."""
_UNREAD = (".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pkl", ".pt", ".pth", ".py")
"""Ends of files that hold weights or code and are not read: a bundle carries none."""


# --- encoders and decoders --------------------------------------------------------------------


def encoder_of(
    folder: Path,
    kind: Any,
    schema: type[Settings],
    *,
    fix: str = REBUILD,
    weights: bool = True,
) -> Any:
    """The encoder of the class ``kind`` in ``folder``, in float32, for inference. Without its
    ``weights`` it is over zeros: its names and shapes tell whether it is one.

    Raises WeightsNotFound for a part that cannot be loaded or lacks a tensor, UnsupportedWeights
    for tensors too many or of other shapes and for settings that are not read.
    """
    import torch

    with loading(folder, fix=fix):
        tensors = (read_weights if weights else read_stand_ins)(folder, ENCODER_NAME)
    # transformers itself says which names are old or tied.
    with loading(folder, fix=fix), no_bar(), no_report():
        refuse_elsewhere(folder / "config.json", fix)
        told = stored(folder / "config.json")
        settings = checked(schema, told, str(folder), fix=fix)
        check_tensors(told, tensors, folder, fix)
        model, report = kind.from_pretrained(
            None,
            config=kind.config_class(**settings.given()),
            state_dict=tensors,
            dtype=torch.float32,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are in the report
            output_loading_info=True,
        )
    require_exact(folder, report, fix)
    return model.eval().requires_grad_(False)


def codec_of(folder: Path, kind: Any, schema: type[Settings], *, fix: str = REBUILD) -> Any:
    """The autoencoder of the class ``kind`` in ``folder``, in float32, for inference; raises as
    :func:`encoder_of`.
    """
    import torch

    with loading(folder, fix=fix), no_report():
        told = stored(folder / "config.json")
        settings = checked(schema, told, str(folder), fix=fix)
        # diffusers believes an index: it would make up what the index says and a file lacks.
        check_tensors(told, read_stand_ins(folder, WEIGHTS_NAME), folder, fix)
        vae, report = kind.from_pretrained(
            folder,
            **settings.given(),  # in the place of whatever else is in the file
            torch_dtype=torch.float32,
            local_files_only=True,
            low_cpu_mem_usage=False,  # otherwise it recommends a package that it lacks
            ignore_mismatched_sizes=True,  # they are in the report
            use_safetensors=True,
            output_loading_info=True,
        )
    require_exact(folder, report, fix)
    return vae.eval().requires_grad_(False)


# --- tokenizers -------------------------------------------------------------------------------


def load_tokenizer(folder: Path, *, fix: str = REBUILD) -> Any:
    """The tokenizer in ``folder``; raises WeightsNotFound if it cannot be loaded, and
    UnsupportedWeights for one whose configuration names files elsewhere.
    """
    from transformers import AutoTokenizer, PreTrainedConfig

    untyped: Any = AutoTokenizer
    with loading(folder, fix=fix), no_report():
        _check_tokenizer(folder, fix)
        return untyped.from_pretrained(
            folder,
            config=PreTrainedConfig(),  # otherwise it looks for one, which names other classes
            local_files_only=True,
            trust_remote_code=False,
        )


def _check_tokenizer(folder: Path, fix: str) -> None:
    """Raise for files of a tokenizer that are none, or say what the library should not read."""
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            check_plain(path)
            check_size(path, MAX_TOKENIZER_BYTES)
    for name in ("tokenizer_config.json", "config.json"):
        if (folder / name).is_file():
            refuse_elsewhere(folder / name, fix)
    check_tokenizer(folder)
    files: dict[str, type[Settings]] = {
        "tokenizer_config.json": TokenizerSettings,
        "special_tokens_map.json": TokenSettings,
    }
    for name, schema in files.items():
        if (folder / name).is_file():
            told = stored(folder / name)
            own = {key: told[key] for key in told if not key.endswith(("_file", "_files"))}
            checked(schema, own, str(folder / name), fix=fix)


_LETTER = "\u2603"
"""One that few vocabularies have."""

_TRIED = 16  # tokens, over the marks of any tokenizer and under the length of any text


def check_vocabulary(tokenizer: Any, encoder: Any, folder: Path, *, fix: str = REBUILD) -> None:
    """Raise WeightsNotFound unless the tokenizer does all that a request asks of it, with tokens
    that the encoder has embeddings for and a mark where the encoder looks for it.
    """
    size = encoder.config.vocab_size
    with loading(folder, fix=fix):
        if tokenizer.pad_token_id is None:
            raise _wrong(f"{folder} has no padding token", "a pad_token in its vocabulary", fix)
        found = _tried(tokenizer)
    highest = max((*tokenizer.get_vocab().values(), *found), default=-1)
    if highest >= size:
        given = f"{folder} has the token {highest}, its encoder knows {size} from 0"
        raise _wrong(given, "the tokenizer that belongs to the encoder", fix)
    if encoder.config.model_type == "clip_text_model":
        mark = encoder.config.eos_token_id  # 2 is told of where the highest token is looked for
        if mark not in (2, *found):
            given = f"{folder} ends no prompt with the token {mark}, at which its encoder looks"
            raise _wrong(given, "the tokenizer that belongs to the encoder", fix)


def _tried(tokenizer: Any) -> set[int]:
    """The tokens of a text that is padded and of one that is cut, as a request has them made.

    Raises whatever the library does, and ValueError for another number of tokens.
    """
    found: set[int] = set()
    for text in (_LETTER, f"{_LETTER} " * 2 * _TRIED):
        whole = tokenizer(text, verbose=False).input_ids
        tokenizer.decode(whole, skip_special_tokens=True)
        made = tokenizer(
            text, padding="max_length", truncation=True, max_length=_TRIED, return_tensors="pt"
        ).input_ids
        if tuple(made.shape) != (1, _TRIED):
            raise ValueError(f"{tuple(made.shape)} tokens where {_TRIED} were asked for")
        found |= {*whole, *made[0].tolist()}
    marks = (tokenizer.unk_token_id, tokenizer.eos_token_id)
    return found | {mark for mark in marks if mark is not None}


def _wrong(given: str, expected: str, fix: str) -> WeightsNotFound:
    return WeightsNotFound(given, expected=expected, fix=fix)


# --- what is looked at before and after ------------------------------------------------------


@contextmanager
def loading(folder: Path, *, fix: str = REBUILD) -> Iterator[None]:
    """Whatever a library or its file readers raise over a part, as WeightsNotFound, which names the
    folder. UnsupportedWeights keep their kind.
    """
    try:
        yield
    except FrescoError as error:
        given = error.given if str(folder) in error.given else f"{folder}: {error.given}"
        way_out = fix if isinstance(error, WeightsNotFound) else error.fix
        raise type(error)(given, expected=error.expected, fix=way_out) from error
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise WeightsNotFound(
            f"{folder} cannot be loaded ({type(error).__name__}: {said})",
            expected="a part of a pipeline folder as diffusers stores it, with safetensors weights",
            fix=fix,
        ) from error


def check_tensors(
    told: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path, fix: str
) -> None:
    """Raise unless there are as many tensors as a configuration needs, of floating-point numbers: a
    library casts what it finds, and other numbers by the bytes of these draw another picture.
    """
    check_extent(told, tensors, folder.name)
    # Older files of CLIP list the positions, which are counted and not loaded.
    places = {name: value for name, value in tensors.items() if not name.endswith("position_ids")}
    wrong = {name for name, value in places.items() if not value.is_floating_point()}
    if wrong:
        raise UnsupportedWeights(
            f"{folder} has {counted(wrong)}, of whole numbers",
            expected="floating-point weights",
            fix=fix,
        )


def require_exact(folder: Path, report: Mapping[str, Any], fix: str) -> None:
    """Raise unless a library found a tensor for every place, and a place for every tensor."""
    missing, unexpected = report["missing_keys"], report["unexpected_keys"]
    shapes = {name: sizes for name, *sizes in report["mismatched_keys"]}
    named = ("lacks", missing), ("has also", unexpected)
    clauses = [f"{word} {counted(names)}" for word, names in named if names]
    for name in sorted(shapes)[:1]:
        found, wanted = (tuple(size) for size in shapes[name])
        clauses.append(f"has {counted(shapes)}, of shape {found} where {wanted} is wanted")
    clauses += [" ".join(str(each).split())[:200] for each in report["error_msgs"][:1]]
    if clauses:
        kind = WeightsNotFound if missing else UnsupportedWeights
        given = f"{folder} {'; '.join(clauses)}"
        raise kind(given, expected="every tensor of the part, and no others", fix=fix)


def refuse_elsewhere(path: Path, fix: str) -> None:
    """Raise UnsupportedWeights for a configuration that sends its library to other places.

    Hubs' own files name code to run, newer versions of themselves and their vocabularies.
    """
    settings = stored(path)
    wrong = [key for key in _CODE if "/" in str(settings.get(key, ""))]
    for key, value in settings.items():
        if key.endswith(("_file", "_files")) and key != "special_tokens_map_file":  # never opened
            names = value if isinstance(value, list) else [value]
            wrong += [key for name in names if not (name is None or _is_inside(name))]
    if wrong:
        raise UnsupportedWeights(
            f"{path} has {wrong[0]}={str(settings[wrong[0]])[:80]!r}",
            expected="names of files beside it: no other place is read, and no code is run",
            fix=f"take {wrong[0]} out of it, or {fix}",
        )


def _is_inside(name: object) -> bool:
    """Whether a name is that of a file in the same folder."""
    return isinstance(name, str) and PurePosixPath(name).name == str(PurePosixPath(name))


# --- files ------------------------------------------------------------------------------------


def stored(path: Path) -> Mapping[str, Any]:
    """A part's configuration. Raises WeightsNotFound for what is no JSON object in a plain file,
    UnsupportedWeights for one of a part that is quantised.
    """
    check_plain(path)
    try:
        stored = read_object(path, f"{path.name} of {path.parent.name}")
    except OSError as error:
        raise _incomplete(f"{path.name} of {path.parent.name} cannot be read ({error})") from error
    if "quantization_config" in stored:
        raise UnsupportedWeights(
            f"{path.parent.name} is quantised, by its quantization_config",
            expected="parts that are not: encoders and decoder run in float32",
            fix="pass the folder that it was quantised from",
        )
    return stored


def check_files(part: Path) -> None:
    """A part has the weights that its library reads, and none that it does not."""
    read = frozenset(weight_files(part, WEIGHTS_NAME if part.name == "vae" else ENCODER_NAME))
    refuse_unread(part, read)
    for each in sorted(read):
        if not (part / each).is_file():
            raise _incomplete(f"{part.name} lacks {each}")
        check_unscaled(part / each)


def refuse_unread(part: Path, read: frozenset[str] = frozenset()) -> None:
    """Raise UnsupportedWeights for a file of a part that holds weights or code, or much else, and
    is none of those that are ``read``.
    """
    for path in sorted(part.rglob("*")):
        name, kind = str(path.relative_to(part)), path.suffix.lower()
        if kind in _UNREAD or (kind == ".safetensors" and name not in read):
            raise UnsupportedWeights(
                f"{part.name} holds {name}, which would be copied and never read",
                expected=", ".join(sorted(read)) or "configurations and vocabularies",
                fix="move the file out of the folder",
            )
        if name not in read and path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise UnsupportedWeights(
                f"{part.name} holds {name} of {path.stat().st_size} bytes",
                expected=f"at most {MAX_TOKENIZER_BYTES} bytes of what holds no weights",
                fix="move the file out of the folder, or fetch the folder again",
            )


def _incomplete(given: str) -> WeightsNotFound:
    return WeightsNotFound(
        given,
        expected="a diffusers pipeline folder, whole, with safetensors weights",
        fix="complete the folder, or fetch it again",
    )
