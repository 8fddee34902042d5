"""Reads Secret blocks of the Prefect server, in the process that needs the secret."""

from __future__ import annotations

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from executor_adapter.exceptions import ConfigurationError


def read_secret_block(name: str) -> str:
    """Return the text in the Secret block of this name; "" if there is no such block.

    Raises:
        ConfigurationError: the block holds something other than a text.
        httpx.HTTPError: the server cannot be reached, or refuses.
    """
    with get_client(sync_client=True) as client:
        try:
            document = client.read_block_document_by_name(name, "secret", include_secrets=True)
        except ObjectNotFound:
            return ""
    value = document.data.get("value")
    if not isinstance(value, str):
        kind = type(value).__name__
        raise ConfigurationError(f"the Secret block {name} holds a {kind}: a credential is a text, so save it as one")
    return value
