"""The configuration: which sources win, and how errors are described in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from executor_adapter.config import FilesTool, RestTool, Settings, load_config
from executor_adapter.exceptions import ConfigurationError

Write = Callable[[str], Path]

TOOLS = """
tools:
  flights:
    source: files
    directory: incoming
    tables:
      flights: {file: flights.csv, partition: [year, month]}
  orders:
    source: rest
    url: http://127.0.0.1:1/api
    resources:
      orders: {path: /orders}
      lines: {path: "/orders/{id}/lines", for_each: orders}
"""


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a directory without config.yaml and .env, and without the developer's own variable."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EXECUTOR_ADAPTER_CONFIG", raising=False)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_config(text: str) -> Path:
        (tmp_path / "config.yaml").write_text(text)
        return Path("config.yaml")

    return write_config


def refusal(path: Path | str | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_file_the_defaults_of_the_guide_apply(tmp_path: Path) -> None:
    """Without a file, the settings are the guide's defaults."""
    settings = load_config()
    assert (settings.collection.max_concurrent_jobs, settings.processing.max_concurrent_jobs) == (4, 2)
    assert (settings.collection.job_timeout, settings.collection.retry_attempts) == (3600.0, 3)
    assert (settings.processing.retry_delay, settings.processing.batch_size) == (60.0, 1000)
    assert settings.collection.rate_limit_buffer == 0.1
    assert (settings.executor.max_workers, settings.executor.kill_grace) == (None, 5.0)
    assert settings.lake == tmp_path / "data"


def test_the_guides_own_file_is_read(write: Write) -> None:
    """The guide's own configuration file is accepted."""
    settings = load_config(
        write(
            "processing: {max_concurrent_jobs: 2, job_timeout: 3600, retry_attempts: 3, retry_delay: 60.0,"
            " batch_size: 1000}\n"
            "collection: {max_concurrent_jobs: 2, job_timeout: 3600, retry_attempts: 3, retry_delay: 60.0,"
            " rate_limit_buffer: 0.1}\n"
        )
    )
    assert settings.collection.max_concurrent_jobs == 2


def test_a_named_file_wins_over_the_variable_and_that_over_the_one_found(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file named by the caller wins over the variable's, and that over ./config.yaml."""
    write("processing: {batch_size: 1}")
    (tmp_path / "variable.yaml").write_text("processing: {batch_size: 2}")
    (tmp_path / "named.yaml").write_text("processing: {batch_size: 3}")
    assert load_config().processing.batch_size == 1
    monkeypatch.setenv("EXECUTOR_ADAPTER_CONFIG", "variable.yaml")
    assert load_config().processing.batch_size == 2
    assert load_config("named.yaml").processing.batch_size == 3


def test_dotenv_names_the_file_where_the_environment_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.env` can name the file, and the environment wins over it."""
    for number, name in enumerate(("here.yaml", "there.yaml"), 5):
        (tmp_path / name).write_text(f"collection: {{job_timeout: {number}}}")
    (tmp_path / ".env").write_text("EXECUTOR_ADAPTER_CONFIG=here.yaml\n")
    assert load_config().collection.job_timeout == 5
    monkeypatch.setenv("EXECUTOR_ADAPTER_CONFIG", "there.yaml")
    assert load_config().collection.job_timeout == 6


def test_the_environment_wins_over_dotenv_and_that_over_the_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment wins over `.env`, and `.env` over the file; foreign variables in `.env` are ignored."""
    file = write("collection: {job_timeout: 1, retry_delay: 1, retry_attempts: 1}")
    (tmp_path / ".env").write_text(
        "UNRELATED=yes\nEXECUTOR_ADAPTER_COLLECTION__JOB_TIMEOUT=2\nEXECUTOR_ADAPTER_COLLECTION__RETRY_DELAY=2\n"
    )
    monkeypatch.setenv("EXECUTOR_ADAPTER_COLLECTION__JOB_TIMEOUT", "3")
    collection = load_config(file).collection
    assert (collection.job_timeout, collection.retry_delay, collection.retry_attempts) == (3.0, 2.0, 1)


def test_a_tool_s_class_follows_from_its_source(write: Write, tmp_path: Path) -> None:
    """A tool's `source` decides its class, and its directory is relative to the file."""
    tools = load_config(write(TOOLS)).tools
    flights, orders = tools["flights"], tools["orders"]
    assert isinstance(flights, FilesTool)
    assert isinstance(orders, RestTool)
    assert flights.tables["flights"].partition == ("year", "month")
    assert flights.directory == tmp_path / "incoming"
    assert orders.resources["lines"].for_each == "orders"


def test_a_header_can_come_from_the_environment(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers set in the environment are merged into the tool of the file."""
    monkeypatch.setenv("EXECUTOR_ADAPTER_TOOLS__ORDERS__HEADERS", '{"Accept-Language": "en"}')
    orders = load_config(write(TOOLS)).tools["orders"]
    assert isinstance(orders, RestTool)
    assert orders.headers == {"Accept-Language": "en"}
    assert orders.url == "http://127.0.0.1:1/api"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("store: {url: [postgresql://me:s3same@db/jobs]}", "'postgresql://me:(hidden)@db/jobs'"),
        ("store: 'postgresql://me:s3same@db/jobs'", "postgresql://me:(hidden)@db/jobs"),
        ("postgresql://me:s3same@db/jobs", "holds a text: must be a mapping"),
        ("s3same", "holds a text: must be a mapping"),
        ("- s3same", "holds a list: must be a mapping"),
        ("tools: {o: {source: rest, url: 'http://a', resources: {}, headers: {Authorization: [s3same]}}}", "(hidden)"),
        ("tools: {o: {source: rest, url: 'http://a', resources: {}, headers: Bearer s3same}}", "(hidden)"),
        ("tools: {orders: [{api_key: s3same}]}", "(hidden)"),
        ("tools: [{headers: {Authorization: s3same}}]", "(hidden)"),
    ],
)
def test_no_error_quotes_a_secret(write: Write, text: str, shown: str) -> None:
    """The message about a wrong value hides passwords of URLs, and values whose key is named like a secret."""
    with pytest.raises(ConfigurationError) as refused:
        load_config(write(text))
    assert "s3same" not in str(refused.value)
    assert shown in str(refused.value)


@pytest.mark.parametrize(
    "text",
    ["server: {port: 80}", "- 1", "log_level: debug\nplugins: !include plugins.yaml\n", "server: 1\nserver: 2\n"],
)
def test_a_file_of_another_program_is_ignored_unless_it_is_named(write: Write, text: str) -> None:
    """A config.yaml without a section of this package is ignored if it was only found, and refused if it was named."""
    file = write(text)
    assert load_config().model_dump(exclude={"lake"}) == Settings().model_dump(exclude={"lake"})
    assert refusal(file).startswith("config.yaml: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colection: {job_timeout: 5}", "colection is not a key: did you mean collection?"),
        ("max_workers: 3", "max_workers is not a key: allowed are cluster, collection, executor"),
        ("server: {port: 80}\nstore: {url: 'memory:'}", "server is not a key: allowed are cluster, collection"),
        ("store: {type: s3}", "store.type is not a key: allowed are functions, lease"),
    ],
)
def test_a_file_that_may_be_ours_is_read_strictly(write: Write, text: str, message: str) -> None:
    """A config.yaml with a key like ours is read strictly, and the message says what to do if it is another's."""
    write(text)
    found = refusal()
    assert found.startswith(f"config.yaml: {message}")
    assert found.endswith("(if config.yaml is another program's, set EXECUTOR_ADAPTER_CONFIG to the path of yours)")


def test_a_file_that_cannot_be_read_is_refused_though_it_was_only_found(write: Write) -> None:
    """A config.yaml that is not YAML is refused even if it was only found."""
    write("a: [")
    assert refusal().startswith("config.yaml: line 1, column 5: expected the node content")


def test_settings_are_frozen() -> None:
    """Settings cannot be changed."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().collection.job_timeout = 5.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("collection: {job_timeout: -5}", "collection.job_timeout: -5 is not allowed: must be greater than 0"),
        ("executor: {max_workers: many}", "executor.max_workers: 'many' is not allowed: must be a whole number"),
        ("executor: {max_workers: yes}", "executor.max_workers: True is not allowed: must be a number"),
        ("collection: {job_timeout: .inf}", "collection.job_timeout: inf is not allowed: must be a finite"),
        ("collection:", "collection: None is not allowed: must be a mapping of keys to values"),
        (
            "cluster: {listen_port: 8799-8790}",
            "cluster.listen_port: '8799-8790' is not allowed: must be a port or range",
        ),
        ("cluster: {listen_port: 65536}", "cluster.listen_port: 65536 is not allowed: must be a port or range"),
        (
            "cluster: {advertise: '10.0.0.1:99999'}",
            "cluster.advertise: '10.0.0.1:99999' is not allowed: must be a host or",
        ),
        ("cluster: {advertise: 'fe80::1'}", "cluster.advertise: 'fe80::1' is not allowed: must be a host or host:port"),
        ("prefect: {mirror: off}", "prefect.mirror: False is not allowed: must be 'auto' or 'never'"),
        (
            "colection: {}",
            "colection is not a key: did you mean collection? allowed are cluster, collection",
        ),
        ("collection: {jobs_timeout: 5}", "collection.jobs_timeout is not a key: did you mean job_timeout? allowed"),
        ("tools: {../up: {source: files}}", "tools.../up: '../up' is not allowed: must be letters, digits"),
        ("tools: {x: {package: p}}", "tools.x.source is missing: must be 'files', 'rest', 'sql' or 'function'"),
        ("tools: {x: {source: ftp}}", "tools.x.source: 'ftp' is not allowed: must be 'files', 'rest'"),
        ("tools: {x: {source: files, package: p}}", "tools.x.tables is missing: must be a mapping of table names"),
        (
            "tools: {x: {source: files, package: p, tables: {t: {encoding: utf-8}}}}",
            "tools.x.tables.t.file is missing: must be the path or pattern of a file, or its URL",
        ),
        (
            "tools: {x: {source: files, tables: {t: {file: a}}}}",
            "tools.x: must have one of the keys package and directory",
        ),
        (
            "tools: {x: {source: rest, url: ftp://a, resources: {r: {path: /r}}}}",
            "tools.x.url: 'ftp://a' is not allowed: must match ^https?://",
        ),
        (
            "tools: {x: {source: rest, resources: {r: {path: /r}}}}",
            "tools.x.url is missing: must be the API's URL, which begins with http:// or https://",
        ),
        (
            "tools: {x: {source: rest, url: 'http://a', resources: {r: {path: /r, for_each: s}}}}",
            "tools.x: resources.r.for_each: 's' is not one of r",
        ),
        ("a: [\n b: {", "line 2, column 6: expected the node content, but found '<stream end>'"),
        ("lake: s3://bucket/lake", "lake: must be a local folder: a sink of yours can copy its tables elsewhere"),
        ("lake: a\nlake: b", "line 2, column 1: 'lake' is a duplicate key: remove one"),
        (
            "job: &a {max_runtime: 5}\ncall: {<<: *a, x: 1, x: 2}",
            "line 2, column 22: 'x' is a duplicate key: remove one",
        ),
        ("- 1", "holds a list: must be a mapping of keys to values"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(write: Write, text: str, message: str) -> None:
    """A wrong file is refused in one line that names place, key, value and what is allowed."""
    assert refusal(write(text)).startswith(f"config.yaml: {message}")


def test_what_tables_share_is_written_once(write: Write) -> None:
    """YAML's `<<` brings the keys of an anchored mapping; a key of one's own takes their place."""
    tables = "a: &a {file: a.csv, partition: day, period: month}\n      b: {<<: *a, file: b.csv, period: year}"
    tool = load_config(write(f"tools:\n  x:\n    source: files\n    directory: .\n    tables:\n      {tables}")).tools[
        "x"
    ]
    assert isinstance(tool, FilesTool)
    assert (tool.tables["a"].period, tool.tables["b"].period) == ("month", "year")
    assert (tool.tables["b"].file, tool.tables["b"].partition) == ("b.csv", ("day",))


def test_the_number_of_further_errors_is_named(write: Write) -> None:
    """The first of several errors is described, and the others are counted."""
    message = refusal(write("collection: {job_timeout: -5, retry_delay: -1}"))
    assert message == "config.yaml: collection.job_timeout: -5 is not allowed: must be greater than 0 (and 1 more)"


def test_a_named_file_must_exist() -> None:
    """A named file that does not exist is refused."""
    assert refusal("nowhere.yaml") == "nowhere.yaml: cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("COLLECTION__JOB_TIMEOUT", "0", "collection.job_timeout: '0' is not allowed: must be greater than 0"),
        ("COLLECTION__JOBTIMEOUT", "1", "collection.jobtimeout is not a key: did you mean job_timeout?"),
        (
            "COLECTION__JOB_TIMEOUT",
            "1",
            "EXECUTOR_ADAPTER_COLECTION__JOB_TIMEOUT is not a key: did you mean EXECUTOR_ADAPTER_COLLECTION?",
        ),
        ("COLLECTION", "x", 'error parsing value for field "collection"'),
    ],
)
def test_a_wrong_variable_is_refused_as_one_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    """A wrong variable is refused, and the message names the environment as its place."""
    monkeypatch.setenv(f"EXECUTOR_ADAPTER_{name}", value)
    assert refusal().startswith(f"environment: {message}")
