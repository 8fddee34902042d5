"""Settings: `config.yaml`, and over it the environment and `.env`, checked before anything starts."""

from __future__ import annotations

from executor_adapter.config.cluster import ClusterSettings, DaskSettings, RaySettings, SshHostSettings, SshSettings
from executor_adapter.config.credentials import Credential
from executor_adapter.config.errors import read_yaml
from executor_adapter.config.formats import Format
from executor_adapter.config.paging import Paging
from executor_adapter.config.schemas import Column, TableSchema
from executor_adapter.config.secrets import hidden, redacted, remember
from executor_adapter.config.sections import (
    CollectionSettings,
    ExecutorSettings,
    JobSettings,
    JobTaskSettings,
    MirrorMode,
    MonitoringSettings,
    PrefectSettings,
    ProcessingSettings,
    RetrySettings,
    StageSettings,
    StoreSettings,
    retry_policy,
)
from executor_adapter.config.settings import Settings, Stage
from executor_adapter.config.sources import ConfigSources, load_config, read_sources
from executor_adapter.config.sql_tool import FunctionTable, FunctionTool, SqlTable, SqlTool
from executor_adapter.config.tables import TableSettings
from executor_adapter.config.tool import Tool
from executor_adapter.config.tools import FilesTool, FileTable, RestResource, RestTool

__all__ = [
    "ClusterSettings",
    "CollectionSettings",
    "Column",
    "ConfigSources",
    "Credential",
    "DaskSettings",
    "ExecutorSettings",
    "FileTable",
    "FilesTool",
    "Format",
    "FunctionTable",
    "FunctionTool",
    "JobSettings",
    "JobTaskSettings",
    "MirrorMode",
    "MonitoringSettings",
    "Paging",
    "PrefectSettings",
    "ProcessingSettings",
    "RaySettings",
    "RestResource",
    "RestTool",
    "RetrySettings",
    "Settings",
    "SqlTable",
    "SqlTool",
    "SshHostSettings",
    "SshSettings",
    "Stage",
    "StageSettings",
    "StoreSettings",
    "TableSchema",
    "TableSettings",
    "Tool",
    "hidden",
    "load_config",
    "read_sources",
    "read_yaml",
    "redacted",
    "remember",
    "retry_policy",
]
