"""The HTTP client of a REST tool. It reads the tool's credential, and sends it to the tool's host alone."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from executor_adapter.config import RestTool
from executor_adapter.exceptions import DataCollectionException


def client_for(tool: RestTool, headers: Mapping[str, str] | None = None) -> httpx.Client:
    """Return an HTTP client that sends `headers`, overridden by the tool's own, and keeps its connections open.

    Raises:
        ConfigurationError: the tool's credential is missing where the configuration says it is.
        DataCollectionException: CONFIGURATION_ERROR, the credential cannot be sent in a header.
    """
    secret = _secret_headers(tool)
    origin = httpx.URL(tool.url or "").netloc

    def keep_secrets(request: httpx.Request) -> None:
        """Remove the secrets from a request that was redirected to another host; httpx itself keeps most headers."""
        if request.url.netloc != origin:
            for name in secret:
                request.headers.pop(name, None)

    return httpx.Client(
        headers={**(headers or {}), **tool.headers, **secret},
        timeout=tool.timeout,
        follow_redirects=True,
        event_hooks={"request": [keep_secrets]} if secret else None,
    )


def _secret_headers(tool: RestTool) -> dict[str, str]:
    """Return the headers that hold the tool's credential."""
    if tool.credential is None:
        return {}
    if tool.username is not None:
        return {"Authorization": tool.credential.resolve_basic(tool.username).get_secret_value()}
    secret = tool.credential.resolve().get_secret_value()
    if not (secret.isascii() and secret.isprintable()):  # An HTTP library would quote the value in its error.
        raise DataCollectionException(
            f"the credential in the {tool.credential} has a line break or another character that no header may have",
            error_code="CONFIGURATION_ERROR",
        )
    templates = {name: value for name, value in tool.headers.items() if "{credential}" in value}
    templates = templates or {"Authorization": "Bearer {credential}"}
    return {name: value.replace("{credential}", secret) for name, value in templates.items()}
