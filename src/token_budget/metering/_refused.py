"""How a refusal leaves `send()`: raised as it is, or as a 402 response that raises it.

SDKs made by Stainless (openai, anthropic, groq) take every exception out of `send()` for a broken connection: they try
again, and at last raise an error of their own. What a response raises they let pass. So for their requests, which have
headers of their own, the refusal is a response whose status says "payment required" and whose first look raises the
refusal itself. Nothing has been sent.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

HTTP_LIBRARIES = ("httpx", "httpx2")


def library_of(kind: type) -> Any:
    """Return the module, httpx or httpx2, that a class or one of its bases is of."""
    for base in kind.__mro__:
        root = base.__module__.partition(".")[0]
        if root in HTTP_LIBRARIES:
            return sys.modules[root]
    raise TypeError(f"{kind.__qualname__} is no class of httpx or httpx2")


def is_of_stainless(request: Any) -> bool:
    """Return whether an SDK made by Stainless sends a request. A program may leave out some of its headers."""
    return any(name.startswith("x-stainless-") for name in request.headers)


def refuse(request: Any, error: Exception) -> Any:
    """Return the response that raises ``error``, if an SDK made by Stainless asks; else raise it here.

    Args:
        request: The request that is not sent, of httpx or httpx2.
        error: The refusal.
    """
    if not is_of_stainless(request):
        raise error
    library = library_of(type(request))
    text = json.dumps({"error": {"type": type(error).__name__, "message": str(error)}})
    headers = {"content-type": "application/json", "x-should-retry": "false"}
    response = refused_class(library)(402, headers=headers, content=text.encode(), request=request)
    response.refusal = error
    return response


def refused_class(library: Any) -> Any:
    """Return the class of the responses that raise themselves, made once for each library."""
    made = _CLASSES.get(library.__name__)
    if made is None or not issubclass(made, library.Response):  # the library may have been loaded anew
        body = {"raise_for_status": _raise, "is_success": property(_raise)}
        made = _CLASSES[library.__name__] = type("RefusedResponse", (library.Response,), body)
    return made


def _raise(response: Any) -> NoReturn:
    raise response.refusal


_CLASSES: dict[str, Any] = {}
