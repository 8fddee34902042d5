"""A credential in a Secret block is read from the Prefect server by the process that uses it."""

from __future__ import annotations

import httpx
import pytest
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Credential
from executor_adapter.error_codes import error_code_of
from executor_adapter.exceptions import ConfigurationError

TOKEN = "s3same-open-Sesame"


def length_of_secret(credential: Credential) -> int:
    return len(credential.resolve().get_secret_value())


@pytest.mark.usefixtures("prefect_api")
def test_a_job_in_a_process_reads_the_block_itself(executor: JobExecutor) -> None:
    """A job is given the name of the block alone, and its worker reads the secret from the server."""
    Secret(value=TOKEN).save("orders-token", overwrite=True)
    job = Job(function=length_of_secret, args=(Credential(secret_block="orders-token"),), pool="process")
    assert executor.run(job) == len(TOKEN)


@pytest.mark.usefixtures("prefect_api")
def test_a_block_that_is_missing_or_no_text_is_named() -> None:
    """A block that does not exist or holds no text is a ConfigurationError, and does not show its value."""
    with pytest.raises(
        ConfigurationError,
        match=r"^the credential in the Secret block nowhere is missing or empty where",
    ):
        Credential(secret_block="nowhere").resolve()
    Secret(value={"user": "ada", "password": TOKEN}).save("pair", overwrite=True)
    with pytest.raises(ConfigurationError, match=r"^the Secret block pair holds a dict") as refused:
        Credential(secret_block="pair").resolve()
    assert TOKEN not in str(refused.value)


@pytest.mark.usefixtures("prefect_api")
def test_a_server_that_is_away_is_a_network_error() -> None:
    """Where the server cannot be reached the error is one that is retried, not one of the configuration."""
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api", PREFECT_CLIENT_MAX_RETRIES: 0}),
        pytest.raises(httpx.ConnectError) as away,
    ):
        Credential(secret_block="orders-token").resolve()
    assert error_code_of(away.value) == "NETWORK_ERROR"
