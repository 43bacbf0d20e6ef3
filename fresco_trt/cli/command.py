"""Commands that know the options they once had, and which of their options are paths.

An old name is refused by its new spelling; a path that the system takes nowhere, by its option.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from fresco_trt.errors import PlanError, one_line
from fresco_trt.plan.paths import check_path

if TYPE_CHECKING:
    from collections.abc import Mapping

RENAMED: Mapping[str, tuple[str, str]] = {
    "--interval": ("--cache", "hicache,interval=3"),
    "--warmup": ("--cache", "hicache,warmup_steps=2"),
    "--actions": ("--cache", "hicache,actions=FFBF+FBF"),
    "--site": ("--cache", "hicache,site=trunk"),
    "--order": ("--cache", "hicache,max_order=1"),
    "--basis": ("--cache", "svd,basis=FILE"),
    "--recipe": ("--precision", "fp8,recipe=fp8-attention"),
    "--keep": ("--precision", "fp8,keep=*.ff.net.2+proj_out"),
    "--ranges": ("--precision", "int8,amax=FILE"),
    "--amax": ("--precision", "int8,amax=FILE"),
    "--force": ("--precision", "int8,force=true"),
    "--layout": ("--target", "sm89,layout=profiles"),
    "--stream-weights": ("--target", "sm89,stream_weights=true"),
    "--delta": ("--preset", "balanced,delta=0.05"),
    "--shift": ("--preset", "balanced,shift=9"),
    "--solver": ("--preset", "balanced,solver=unipc"),
    "--text-tokens": ("--preset", "balanced,text_tokens=128+256+512"),
}
"""Each old option, and what could be one, with the one that it is part of and an example of how."""


PATHS = frozenset(
    (
        "api_key_file",
        "bench",
        "engines",
        "folder",
        "from_nsys",
        "graphs",
        "image",
        "key",
        "mask",
        "out",
        "picture",
        "pictures",
        "pipeline",
        "plan_file",
        "profile",
        "prompts",
        "save_mask",
        "strip",
        "verify_key",
        "weights",
    )
)
"""What is a path, or may be one, by the name of the parameter."""


class Command(TyperCommand):
    """A command that refuses an old option by its new spelling, where it has that, and a path that
    no system call takes.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click's. Raises PlanError for an option of :data:`RENAMED`, and InvalidArgument for a
        path as :func:`check_path`.
        """
        rest = self._parsed(ctx, args)
        for each in self.params:
            value = ctx.params.get(each.name) if each.name in PATHS else None
            for path in value if isinstance(value, list | tuple) else [value]:
                if path is not None:
                    check_path(f"{each.opts[0]} {one_line(str(path))[:60]}", path)
        return rest

    def _parsed(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # Which class it has depends on typer's version: some bring a click of their own.
            name = getattr(error, "option_name", "")
            option, example = RENAMED.get(name, ("", ""))
            if not any(option in each.opts for each in self.params):
                raise
            raise PlanError(
                f"the option {name}",
                expected=f"it as a part of {option}",
                fix=f"write it like {option} {example}",
            ) from None
