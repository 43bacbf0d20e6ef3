"""Refusals as OpenAI's clients read them: a status, and an error object that names the field."""

from __future__ import annotations

from typing import Any

from fresco_trt.errors import BundleError, FrescoError, PlanError, one_line

CLIENT_GONE = 499
"""Status of what nobody waits for any more, as nginx has it; nobody reads it either."""

_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """A request that is not answered with a picture. `code` is also the reason in the metrics."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = one_line(message)[:1000]
        self.param = param
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The error object that OpenAI's clients read."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {
            "message": self.message,
            "type": _KINDS.get(self.status, kind),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """When to ask again, where that is known."""
        return {} if self.retry_after is None else {"retry-after": str(self.retry_after)}


def invalid(message: str, param: str | None, *, code: str = "invalid_value") -> Refusal:
    """A request that is wrong itself."""
    return Refusal(400, code, message, param=param)


def replaced() -> Refusal:
    """The bundle that was looked up for a request has gone out of service before it was taken."""
    message = "the bundles were replaced at this moment; ask again"
    return Refusal(503, "bundle_replaced", message, retry_after=1)


def refusal_of(error: Exception) -> Refusal:
    """What went wrong with a request, as its client is told: a wrong request is the client's, all
    else the server's, 503 where its bundle is at fault. Nothing is told of an error that the
    package did not foresee.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, PlanError):
        return Refusal(400, _code_of(error), str(error))
    if isinstance(error, BundleError):
        return Refusal(503, _code_of(error), str(error))
    if isinstance(error, FrescoError):
        return Refusal(500, _code_of(error), str(error))
    return Refusal(500, "internal_error", "the server failed; its log says why")


def _code_of(error: FrescoError) -> str:
    """The name of the error's class in OpenAI's spelling: `prompt_too_long`."""
    name = type(error).__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
