"""What the configurations of a pipeline's parts may say: every setting that counts, in bounds.

Between a pipeline folder, which may come from anywhere, and the libraries that build from it. A
library fills what is left out with its own defaults, keeps what it does not know as an attribute,
and finds out what cannot be when it computes. So it is given the settings that are listed here and
no others: those by which a part computes must be there, those that change what ``forward`` returns
must be as they are, and whatever else a configuration holds is ignored on purpose: versions, names,
dtypes, and settings of training and generation. A tokenizer's library reads the files itself, so
there a setting that is not listed is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from fresco_trt.errors import UnsupportedWeights
from fresco_trt.files.canonical_json import clipped, quoted

Whole = Annotated[int, Field(ge=1)]
Epsilon = Annotated[float, Field(gt=0, le=1)]
Levels = Annotated[list[Whole], Field(min_length=1, max_length=16)]
Numbers = Annotated[list[float], Field(max_length=65_536)]


class Settings(BaseModel):
    """The settings of a part of the class ``made``."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=()
    )
    made: ClassVar[str]

    def given(self) -> dict[str, Any]:
        """What the library builds the part from."""
        return self.model_dump()


# --- tokenizers -------------------------------------------------------------------------------


class _Strict(Settings):
    model_config = ConfigDict(extra="forbid")
    made = "a tokenizer"


class AddedToken(_Strict):
    """A token with how it is looked for."""

    content: Annotated[str, Field(min_length=1, max_length=256)]
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    special: bool = False
    written_as: Literal["AddedToken"] = Field("AddedToken", alias="__type")


Token = Annotated[str, Field(min_length=1, max_length=256)] | AddedToken
Tokens = Annotated[list[Token], Field(max_length=1024)]
Flag = bool | None
Name = Annotated[str, Field(max_length=4096)] | None


class TokenSettings(_Strict):
    """Of ``special_tokens_map.json``, which overrules the other file where it is there."""

    bos_token: Token | None = None
    eos_token: Token | None = None
    unk_token: Token | None = None
    pad_token: Token | None = None
    sep_token: Token | None = None
    cls_token: Token | None = None
    mask_token: Token | None = None
    additional_special_tokens: Tokens | None = None
    extra_special_tokens: Tokens | Annotated[dict[str, Token], Field(max_length=1024)] | None = None


class TokenizerSettings(TokenSettings):
    """Of ``tokenizer_config.json``, without the names of files."""

    tokenizer_class: str
    # Where it is left out, or 10^30 as libraries then write, the encoder's own length stands.
    model_max_length: Annotated[float, Field(ge=4)] | None = None
    max_length: Whole | None = None
    padding_side: Literal["right", "left"] = "right"
    truncation_side: Literal["right", "left"] = "right"
    truncation_strategy: Name = None
    stride: Literal[0] = 0
    pad_to_multiple_of: None = None
    pad_token_type_id: Literal[0] = 0
    extra_ids: Annotated[int, Field(ge=0, le=1024)] = 0
    added_tokens_decoder: dict[Annotated[str, Field(pattern=r"^\d{1,7}$")], AddedToken] = Field(
        default_factory=dict, max_length=1024
    )
    model_input_names: list[Literal["input_ids", "attention_mask", "token_type_ids"]] = []
    add_bos_token: Flag = None
    add_eos_token: Flag = None
    add_prefix_space: Flag = None
    clean_up_tokenization_spaces: Flag = None
    do_lower_case: Flag = None
    from_slow: Flag = None
    is_local: Flag = None
    legacy: Flag = None
    local_files_only: Flag = None
    split_special_tokens: Flag = None
    trim_offsets: Flag = None
    use_fast: Flag = None
    backend: Name = None
    chat_template: Name = None
    errors: Name = None
    name_or_path: Name = None
    processor_class: Name = None
    sp_model_kwargs: Annotated[dict[str, Any], Field(max_length=0)] | None = None


Kind = TypeVar("Kind", bound=Settings)


def checked(kind: type[Kind], told: object, name: str, *, fix: str) -> Kind:
    """The settings in what was ``told`` of a part, which errors call ``name``.

    Raises UnsupportedWeights, with the way out ``fix``, for a setting that is missing or wrong.
    """
    try:
        return kind.model_validate(told)
    except ValidationError as error:
        given, expected = _said(error.errors()[0], kind)
        raise UnsupportedWeights(f"{name} {given}", expected=expected, fix=fix) from error


def refuse(given: str, expected: str) -> NoReturn:
    """Within a schema: raise what :func:`checked` turns into its error."""
    raise PydanticCustomError("settings", "{expected}", {"given": given, "expected": expected})


def _said(detail: ErrorDetails, kind: type[Settings]) -> tuple[str, str]:
    # Below the setting itself, what is no index is what pydantic calls one of several types.
    first, *below = detail["loc"] or ("",)
    field = clipped(".".join(map(str, (first, *(each for each in below if type(each) is int)))))
    if detail["type"] == "missing":
        return f"gives no {field}", f"what {kind.made} computes by: no default stands in"
    if detail["type"] == "extra_forbidden":
        return f"has {field}={quoted(detail['input'])}", f"settings of {kind.made}, no others"
    given = detail.get("ctx", {}).get("given") or f"{field}={quoted(detail['input'])}"
    return f"has {clipped(given)}", clipped(detail["msg"].removeprefix("Input should be "), 150)
