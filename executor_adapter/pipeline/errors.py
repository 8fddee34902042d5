"""The errors of sources and landings that a retry would meet again."""

from __future__ import annotations

from executor_adapter.exceptions import DataCollectionException


def configuration_error(message: str) -> DataCollectionException:
    """Return the error of settings that do not fit the source, or what is in the lake."""
    return DataCollectionException(message, error_code="CONFIGURATION_ERROR")


def data_error(message: str) -> DataCollectionException:
    """Return the error of bytes or rows that are not what they should be."""
    return DataCollectionException(message, error_code="DATA_ERROR")
