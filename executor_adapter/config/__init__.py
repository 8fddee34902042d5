"""Settings: `config.yaml`, and over it the environment and `.env`, checked before anything starts."""

from __future__ import annotations

from executor_adapter.config.cluster import ClusterSettings as ClusterSettings
from executor_adapter.config.cluster import DaskSettings as DaskSettings
from executor_adapter.config.cluster import RaySettings as RaySettings
from executor_adapter.config.cluster import SshHostSettings as SshHostSettings
from executor_adapter.config.cluster import SshSettings as SshSettings
from executor_adapter.config.credentials import Credential as Credential
from executor_adapter.config.errors import holds as holds
from executor_adapter.config.errors import read_yaml as read_yaml
from executor_adapter.config.schemas import Column as Column
from executor_adapter.config.schemas import TableSchema as TableSchema
from executor_adapter.config.secrets import hidden as hidden
from executor_adapter.config.secrets import redacted as redacted
from executor_adapter.config.secrets import remember as remember
from executor_adapter.config.sections import CollectionSettings as CollectionSettings
from executor_adapter.config.sections import ExecutorSettings as ExecutorSettings
from executor_adapter.config.sections import JobSettings as JobSettings
from executor_adapter.config.sections import JobTaskSettings as JobTaskSettings
from executor_adapter.config.sections import MirrorMode as MirrorMode
from executor_adapter.config.sections import MonitoringSettings as MonitoringSettings
from executor_adapter.config.sections import PrefectSettings as PrefectSettings
from executor_adapter.config.sections import ProcessingSettings as ProcessingSettings
from executor_adapter.config.sections import RetrySettings as RetrySettings
from executor_adapter.config.sections import StageSettings as StageSettings
from executor_adapter.config.sections import StoreSettings as StoreSettings
from executor_adapter.config.sections import retry_policy as retry_policy
from executor_adapter.config.settings import Settings as Settings
from executor_adapter.config.settings import Stage as Stage
from executor_adapter.config.sources import ConfigSources as ConfigSources
from executor_adapter.config.sources import load_config as load_config
from executor_adapter.config.sources import read_sources as read_sources
from executor_adapter.config.tables import FileTable as FileTable
from executor_adapter.config.tables import Format as Format
from executor_adapter.config.tables import FunctionTable as FunctionTable
from executor_adapter.config.tables import Paging as Paging
from executor_adapter.config.tables import RestResource as RestResource
from executor_adapter.config.tables import SqlTable as SqlTable
from executor_adapter.config.tables import TableSettings as TableSettings
from executor_adapter.config.tools import FilesTool as FilesTool
from executor_adapter.config.tools import FunctionTool as FunctionTool
from executor_adapter.config.tools import RestTool as RestTool
from executor_adapter.config.tools import SqlTool as SqlTool
from executor_adapter.config.tools import Tool as Tool
