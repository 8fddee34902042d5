"""The headers that prove who asks: a key, a bearer token, a name with a password, or a token of OAuth2."""

from __future__ import annotations

import base64
import time
from typing import Any

import httpx

from executor_adapter.config import Credential, RestTool, redacted, remember
from executor_adapter.exceptions import DataCollectionException

MIN_LIFETIME = 30.0
"""Seconds that a token must be valid for still, or else a new one is got."""
DEFAULT_LIFETIME = 300.0
"""Seconds for which a token is taken to be valid whose server does not say."""


class Authentication:
    """Makes the secret headers of a tool's requests. They are for the tool's own origin alone.

    Raises:
        ConfigurationError: the credential is missing where the configuration says it is.
        DataCollectionException: CONFIGURATION_ERROR, it cannot be sent in a header.
    """

    def __init__(self, tool: RestTool) -> None:
        self._tool = tool
        self._token, self._valid_until = "", 0.0

    def headers(self, client: httpx.Client) -> dict[str, str]:
        """Return the headers; a token of OAuth2 is got with `client` when there is none that is valid still."""
        tool = self._tool
        if tool.credential is None:
            return {}
        if tool.token_url is not None:
            if time.monotonic() > self._valid_until - MIN_LIFETIME:
                self._get_token(client, tool.token_url, tool.credential)
            return {"Authorization": f"Bearer {self._token}"}
        secret = _secret(tool.credential)
        if tool.username is not None:
            return {"Authorization": _basic(tool.username, secret)}
        templates = {name: value for name, value in tool.headers.items() if "{credential}" in value}
        templates = templates or {"Authorization": "Bearer {credential}"}
        return {name: value.replace("{credential}", secret) for name, value in templates.items()}

    def forget_token(self) -> bool:
        """Get a new token for the next request; return whether there is one to forget."""
        had_token, self._token, self._valid_until = bool(self._token), "", 0.0
        return had_token

    def _get_token(self, client: httpx.Client, url: str, credential: Credential) -> None:
        form = {"grant_type": "client_credentials"} | ({"scope": self._tool.scope} if self._tool.scope else {})
        headers = {
            "Authorization": _basic(self._tool.username or "", _secret(credential)),
            "Accept": "application/json",
        }
        response = client.post(url, data=form, headers=headers)
        response.raise_for_status()
        self._token, lifetime = _token_in(response)
        remember(self._token)
        self._valid_until = time.monotonic() + lifetime


def _token_in(response: httpx.Response) -> tuple[str, float]:
    try:
        found: Any = response.json()
        token, lifetime = str(found["access_token"]), float(found.get("expires_in") or DEFAULT_LIFETIME)
    except (ValueError, KeyError, TypeError, AttributeError):
        token, lifetime = "", 0.0
    if not token:
        raise DataCollectionException(
            f"{response.url} sent no access_token: check token_url: {redacted(response.text)[:200]}",
            error_code="CONFIGURATION_ERROR",
        )
    return token, lifetime


def _secret(credential: Credential) -> str:
    secret = credential.resolve().get_secret_value()
    if not (secret.isascii() and secret.isprintable()):  # An HTTP library would quote the value in its error.
        raise DataCollectionException(
            f"the credential in the {credential} has a line break or another character that no header may have",
            error_code="CONFIGURATION_ERROR",
        )
    return secret


def _basic(name: str, secret: str) -> str:
    pair = base64.b64encode(f"{name}:{secret}".encode()).decode()
    remember(pair)  # An API may repeat what it got, and the secret is not to be seen in it.
    return f"Basic {pair}"
