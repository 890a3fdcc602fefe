"""What a client is told when something goes wrong: OpenAI's envelope, with the status from which its client makes an exception.

    {"error": {"message": …, "type": …, "param": …, "code": …}}

| status | exception of the client | when |
|---|---|---|
| 400 | `BadRequestError` | a field that is wrong, or that this model cannot do |
| 401 | `AuthenticationError` | no API key, or another one |
| 403 | `PermissionDeniedError` | a foreign host or origin, adapters from elsewhere |
| 404 | `NotFoundError` | no such model or address |
| 413 | `APIStatusError` | the body is too large |
| 429 | `RateLimitError` | the queue is full; `Retry-After` says when to come back |
| 500 | `InternalServerError` | a bug, or memory that ran out; the traceback stays in the server's log |
| 503 | `InternalServerError` | it waited longer than an answer may take, or the server is going down |
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from luthier.errors import UserError

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""Status → type of the error; other mistakes of the client are `invalid_request_error`, those of the server `server_error`."""
PARAMETERS = {"max_new_tokens": "max_tokens", "stop_strings": "stop"}
"""Our name of a setting → OpenAI's."""
MESSAGE = 1000
"""Characters of a message that are told."""
_FORM = re.compile(r"[\[\]-]|^(str|[A-Z]\w*)$")
"""What pydantic puts between the names of fields where a field may have several forms."""


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: what is wrong and what to do.
        param: the field that is wrong.
        code: a word for programs.
        headers: of the response.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, headers: Mapping[str, str] = {}
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    @classmethod
    def of(cls, error: BaseException) -> Refused:
        """What is told of any exception: the words of a user's mistake, and of a bug nothing but that it was one."""
        if isinstance(error, Refused):
            return error
        if isinstance(error, UserError):
            message = f"{error.what}. {error.hint}" if error.hint else error.what
            code = "context_length_exceeded" if "the model's context is" in error.what else None
            param = PARAMETERS.get(error.where, error.where) if error.where and error.where.isidentifier() else None
            return cls(400, message, param=param, code=code)
        return cls(500, "the server failed at this request; its log says how")

    def envelope(self) -> dict[str, Any]:
        """The body of the response."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message[:MESSAGE], "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole response."""
        return answer(self.envelope(), self.status, self.headers)


def encoded(value: Any) -> str:
    """JSON on one line, characters as they are."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def answer(value: Any, status: int = 200, headers: Mapping[str, str] = {}) -> Response:
    """A response of JSON. What cannot be written in UTF-8 (half of a surrogate pair that a client sent) becomes `?`."""
    return Response(encoded(value).encode("utf-8", "replace"), status, dict(headers), media_type="application/json")


def tell_errors(app: FastAPI) -> None:
    """Make every error of an application an envelope."""

    @app.exception_handler(Refused)
    async def refused(_request: Request, error: Refused) -> Response:
        return error.response()

    @app.exception_handler(UserError)
    async def mistaken(_request: Request, error: UserError) -> Response:
        return Refused.of(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        return _first_mistake(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        message = f"{error.detail} ({request.method} {request.url.path})" if error.status_code in (404, 405) else error.detail
        return Refused(error.status_code, str(message), headers=error.headers or {}).response()

    @app.exception_handler(Exception)
    async def broken(_request: Request, error: Exception) -> Response:
        return Refused.of(error).response()


def _first_mistake(errors: Sequence[Mapping[str, Any]]) -> Refused:
    """The mistake in a body that is told: of a field that may have several forms, the form that came furthest."""
    worst = max(errors, key=lambda error: len(error["loc"]))
    if worst["type"] == "json_invalid":
        return Refused(400, f"the body is not valid JSON: {worst['ctx']['error']}")
    place = ".".join(str(part) for part in worst["loc"][1:] if not _FORM.search(str(part)))
    message = str(worst["msg"]).removeprefix("Value error, ")
    code = "unknown_parameter" if worst["type"] == "extra_forbidden" else None
    if not place:
        return Refused(400, f"the body is no JSON object of this kind: {message} (is `Content-Type: application/json` set?)")
    return Refused(400, f"{place}: {message}", param=place, code=code)
