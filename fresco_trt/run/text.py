"""The text of a stage that takes less of it than the prompt is encoded to, or sees more of it.

Beside the stages. Prompts are encoded to one length, the prompt's own tokens first and padding
behind them. FLUX's attention sees the padding, so that a stage without part of it is another input
of the model: a choice of the plan's, which costs no token of the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fresco_trt.errors import PromptTooLong
from fresco_trt.plan.signature import TEXT_BIAS

if TYPE_CHECKING:
    from fresco_trt.plan.stages import StagePlan
    from fresco_trt.run.request import Request

TEXT = "text"
"""The engine input [B,T,D] that a prompt's tokens are in."""


def check_text(plan: StagePlan, own: int | None, whole: int) -> None:
    """Raise PromptTooLong if a stage takes fewer text tokens than are the prompt's ``own``.

    ``own`` is that of the longest prompt, the negative ones too, of the ``whole`` length that they
    are encoded to; None where it is not known, as of embeddings: all may be the prompt's then.
    """
    texts = plan.text_tokens(whole)
    kept = min(texts)
    if kept >= (whole if own is None else own):
        return
    stage = f"stage {texts.index(kept) + 1}"
    if own is None:
        raise PromptTooLong(
            f"a text of {whole} tokens, of which it is not known how many are padding, for {stage}",
            expected=f"at most {kept}, or the prompt itself: only padding is cut",
            fix="pass the prompt, not its embeddings, or make the plan without text_tokens",
        )
    raise PromptTooLong(
        f"a prompt of {own} text tokens for {stage}",
        expected=f"at most {kept}: its engine takes no more, and only padding is cut",
        fix="shorten the prompt, or make the plan with larger text_tokens",
    )


def stage_inputs(
    request: Request, index: int, inputs: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """A branch's constant inputs for the stage counted from 0: of a text that is cut, a view, which
    follows what is written to it; the bias of one that is amplified is the stage's own.
    """
    if more := amplification(request.plan, index):
        bias = inputs[TEXT_BIAS]
        inputs = {**inputs, TEXT_BIAS: bias + more * (bias == 0)}
    cut = _cut(request, index)
    return inputs if cut is None else {**inputs, TEXT: inputs[TEXT][:, : cut[0]]}


def amplification(plan: StagePlan, index: int) -> float:
    """What the stage counted from 0 adds to attention's scores of the prompt's own tokens.

    ``rho / 2 * ln(N / n)``, for n tokens in the stage and N in the last one: a text token weighs
    ``(N / n)^(rho / 2)`` times what it does at full resolution (Jenga, arXiv 2505.16864, whose code
    adds ``-rho * log2(sqrt(n / N))`` to scores that it takes 2 to the power of). Jenga leaves the
    text's own queries alone; here all queries see it, for the bias is one row for all of them.
    """
    return plan.text_amplifier / 2 * math.log(plan.tokens[-1] / plan.tokens[index])


def stage_tables(
    request: Request, index: int, tables: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Tables with as many rows of the text in front as the stage, counted from 0, takes."""
    cut = _cut(request, index)
    if cut is None:
        return tables
    kept, whole = cut
    return {name: torch.cat([each[:kept], each[whole:]]) for name, each in tables.items()}


def _cut(request: Request, index: int) -> tuple[int, int] | None:
    """How many text tokens the stage takes, and of how many; None for all of them."""
    if not request.plan.cuts_text:
        return None
    whole = request.conditioning.inputs[TEXT].shape[1]
    kept = request.plan.text_tokens(whole)[index]
    return None if kept == whole else (kept, whole)
