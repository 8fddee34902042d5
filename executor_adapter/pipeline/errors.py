"""The errors of sources, landings and rows that a retry would meet again."""

from __future__ import annotations

from executor_adapter.exceptions import DataCollectionException, DataProcessingException


def configuration_error(message: str) -> DataCollectionException:
    """Return the error of settings that do not fit the source, or what is in the lake."""
    return DataCollectionException(message, error_code="CONFIGURATION_ERROR")


def data_error(message: str) -> DataCollectionException:
    """Return the error of bytes or rows that are not what they should be."""
    return DataCollectionException(message, error_code="DATA_ERROR")


def rows_error(message: str, stage: str, code: str = "DATA_ERROR") -> DataProcessingException:
    """Return the error of rows that a part of the pipeline, the `stage`, cannot take; `code` says whose fault it is."""
    return DataProcessingException(message, error_code=code, processing_stage=stage)
