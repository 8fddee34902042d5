"""`config check|show|schema`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from executor_adapter.cli.checks import project_modules
from executor_adapter.cli.config import json_schema
from executor_adapter.store.sql.engines import make_engine
from executor_adapter.store.sql.store import SqlStore
from tests.api_server import Answer, as_json, serving
from tests.cli.conftest import Command
from tests.servers import ROOT
from tests.waiting import PATIENCE


def write(home: Path, text: str) -> None:
    (home / "config.yaml").write_text(text)


def test_a_valid_configuration_is_confirmed(command: Command, home: Path) -> None:
    """`config check` confirms a valid configuration and names its file."""
    assert command("config", "check") == (0, "config.yaml: fine\n", "")
    (home / "other.yaml").write_text("job: {max_runtime: 5}")
    assert command("config", "check", "-c", "other.yaml", "--json").json == {
        "file": "other.yaml",
        "valid": True,
        "problems": [],
    }


def test_a_file_of_another_program_is_ignored(command: Command, home: Path) -> None:
    """A config.yaml without a section of this package is ignored, and `config check` says so."""
    write(home, "server: {port: 80}")
    message = "no file: the defaults (config.yaml is ignored: it has no section of this package): fine\n"
    assert command("config", "check") == (0, message, "")
    assert command("config", "check", "--json").json == {"file": None, "valid": True, "problems": []}
    assert command("config", "check", "-c", "config.yaml").code == 2


def test_a_wrong_configuration_is_refused_in_one_line(command: Command, home: Path) -> None:
    """A wrong configuration gives exit code 2 and one line that names the key and the fix."""
    write(home, "job: {max_runtme: 5}")
    result = command("config", "check")
    assert result.code == 2
    assert result.err.startswith(
        "executor-adapter: config.yaml: job.max_runtme is not a key: did you mean max_runtime?"
    )
    assert result.err.count("\n") == 1


def test_what_will_not_work_is_found(command: Command, home: Path) -> None:
    """`config check` finds unknown error codes, modules that cannot be imported and stores that cannot be opened."""
    rules = "retry: {rules: [{codes: [NETWROK_ERROR, '*', API_ERROR, httpx.ReadTimeout]}]}"
    write(home, f"executor: {{preload: [json, jsn]}}\nstore: {{url: 'sqlite:///none/jobs.db'}}\njob: {{{rules}}}\n")
    result = command("config", "check")
    assert (result.code, result.out) == (2, "")
    codes, preload, store = result.err.splitlines()
    assert codes == (
        "config.yaml: job.retry.rules.0.codes: 'NETWROK_ERROR' is not an error code: did you mean NETWORK_ERROR?"
    )
    assert preload.startswith(
        "config.yaml: executor.preload: 'jsn' cannot be imported: ModuleNotFoundError: No module "
    )
    assert re.match(r"config.yaml: store: cannot create \S+/none/jobs.db: .*: No such file or directory: create", store)
    assert command("config", "check", "--json").json["valid"] is False


def test_what_a_pipeline_names_is_looked_for(command: Command, home: Path) -> None:
    """`config check` imports the steps, functions, schemas and summaries of tools, and names what is not there."""
    (home / "my_rules.py").write_text("def orders(): ...\ndef step(rows): ...\n")
    table = {"function": "my_rules:orders", "steps": ["my_rules:step", {"deduplicate": {"key": "id"}}]}
    tool: dict[str, Any] = {"source": "function", "tables": {"orders": table}}
    write(home, yaml.safe_dump({"tools": {"shop": tool}}))
    assert command("config", "check") == (0, "config.yaml: fine\n", "")
    table["function"] = "my_rules:order"
    table["steps"] = ["my_rules:stepp"]
    write(home, yaml.safe_dump({"tools": {"shop": tool}}))
    result = command("config", "check")
    place, missing = (
        "config.yaml: tools.shop.tables.orders",
        "cannot be imported: AttributeError: module 'my_rules' has no",
    )
    assert result.code == 2
    function, step = result.err.splitlines()
    assert function == f"{place}.function: 'my_rules:order' {missing} attribute 'order': must be module:name"
    assert step == f"{place}.steps: 'my_rules:stepp' {missing} attribute 'stepp': must be module:name"
    table["steps"] = [{"deduplicate": {"keys": "id"}}]
    write(home, yaml.safe_dump({"tools": {"shop": tool}}))
    said = "steps: deduplicate: key: Field required; keys: Extra inputs are not permitted"
    assert command("config", "check").err == f"{place}.{said}\n"
    table["steps"] = []
    tool["summary"] = "my_rule:summarise"
    write(home, yaml.safe_dump({"tools": {"shop": tool}}))
    missing = (
        "tools.shop.summary: 'my_rule:summarise' cannot be imported: ModuleNotFoundError: No module named 'my_rule'"
    )
    assert missing in command("config", "check").err


def test_a_check_that_is_not_there_is_found(command: Command, home: Path) -> None:
    """`config check` and the start of a run find it: exit code 2, and nothing runs."""
    (home / "my_checks.py").write_text("SCHEMAS = {}\n")
    (home / "orders.csv").write_text("id\n1\n")
    table: dict[str, Any] = {
        "file": "orders.csv",
        "schema": {"columns": {"id": "integer"}},
    }
    table["steps"] = [{"check": "my_checks:SCHEMA"}, {"check": "my_check:ORDERS"}]
    tools = {"shop": {"source": "files", "directory": ".", "tables": {"orders": table}}}
    write(home, yaml.safe_dump({"lake": "lake", "tools": tools}))
    place, failed = "tools.shop.tables.orders", "cannot be imported"
    no_name, no_module = "module 'my_checks' has no attribute 'SCHEMA'", "No module named 'my_check'"
    said = [
        f"{place}.steps: 'my_checks:SCHEMA' {failed}: AttributeError: {no_name}: must be module:name",
        f"{place}.steps: 'my_check:ORDERS' {failed}: ModuleNotFoundError: {no_module}: must be module:name",
    ]
    checked, run = command("config", "check"), command("pipeline", "run")
    assert (checked.code, checked.err.splitlines()) == (2, [f"config.yaml: {each}" for each in said])
    assert (run.code, run.err.splitlines(), (home / "lake").exists()) == (2, said, False)


ENDLESS = """
def orders():
    open("asked", "w").close()
    while True:
        yield {"id": 1}
"""


def test_sources_are_tried_on_request(command: Command, home: Path) -> None:
    """With `--sources` the first rows of each table are read, and no more; without it no source is asked."""
    (home / "endless_rules.py").write_text(ENDLESS)
    (home / "inbox").mkdir()
    # More than is read: the last value that is read is cut off.
    (home / "inbox/large.csv").write_text("id,note\nx,\n" + '1,"two\nlines"\n' * 100_000)
    asked: list[str] = []

    def respond(path: str, body: Any) -> Answer:
        asked.append(path)
        return as_json([{"id": str(len(asked))}])

    id_is_integer = {"columns": {"id": "integer"}}
    with serving(respond) as (url, _):
        paging = {"by": "page"}
        tools = {
            "shop": {
                "source": "files",
                "directory": "inbox",
                "tables": {
                    "good": {"file": "*.csv", "schema": id_is_integer},
                    "lost": {"file": "lost.csv"},
                    "other": {"file": "*.csv", "schema": {"columns": {"ids": "integer"}}},
                },
            },
            "own": {
                "source": "function",
                "batch_rows": 10,
                "tables": {
                    "orders": {"function": "endless_rules:orders"},
                    "new": {"function": "endless_rules:orders", "key": "id", "cursor": "id", "schema": id_is_integer},
                },
            },
            "api": {
                "source": "rest",
                "url": url,
                "page_size": 1,
                "paging": paging,
                "resources": {"all": {"path": "/"}},
            },
        }
        write(home, yaml.safe_dump({"lake": "lake", "tools": tools}))
        assert command("config", "check").code == 0
        assert (asked, (home / "asked").exists()) == ([], False)
        result = command("config", "check", "--sources")
    assert (result.code, len(asked), (home / "lake").exists()) == (2, 1, False)
    said = {line.split(": ")[1]: line.partition(": ")[2].partition(": ")[2] for line in result.err.splitlines()}
    assert re.fullmatch(r"OK: [0-9,]+ of the first [0-9,]+ rows fit", said["tools.shop.tables.good"])
    assert said["tools.shop.tables.lost"].startswith("SOURCE_UNAVAILABLE: ")
    assert said["tools.shop.tables.other"].startswith("DATA_ERROR: missing columns: ids: ")
    assert said["tools.own.tables.orders"] == "OK: 10 of the first 10 rows fit"
    assert "rows fit; the cursor id is a number: one that is too high shows" in said["tools.own.tables.new"]
    assert said["tools.api.resources.all"] == "OK: 1 of the first 1 rows fit"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("config", "check"), 0),
        pytest.param(("pipeline", "run", "-c", "wrong.yaml"), 2, marks=pytest.mark.nightly),
    ],
)
def test_no_file_of_the_directory_runs_in_place_of_a_package(home: Path, words: tuple[str, ...], code: int) -> None:
    """A `pyarrow.py` of the current directory is not imported, though modules there are found; help says so."""
    for name in ("pyarrow", "yaml", "pandas"):
        (home / f"{name}.py").write_text("open('has run', 'w'); raise SystemExit(99)")
    (home / "my_rules.py").write_text("def orders(): ...\n")
    tool = {"source": "function", "tables": {"orders": {"function": "my_rules:orders"}}}
    write(home, json.dumps({"tools": {"shop": tool}, "executor": {"preload": ["pyarrow", "my_rules"]}}))
    (home / "wrong.yaml").write_text(json.dumps({"tools": {"shop": tool | {"summary": "my_rule:summarise"}}}))
    command = [sys.executable, "-P", "-m", "executor_adapter.cli"]
    done = subprocess.run([*command, *words], cwd=home, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, (home / "has run").exists()) == (code, False), done.stderr
    shown = subprocess.run(
        [*command, *words[:2], "--help"], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert "current directory" in shown.stdout


def test_an_entry_of_pythonpath_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the current directory is on `sys.path` already, what a command adds last is what it removes."""
    monkeypatch.setattr(sys, "path", [os.getcwd(), *sys.path])
    before = list(sys.path)
    with project_modules(None):
        assert sys.path == [*before, os.getcwd()]
    assert sys.path == before


def test_a_code_of_ones_own_is_only_noted(command: Command, home: Path) -> None:
    """`config check` notes an error code that only the user's own errors can have, and accepts it."""
    write(home, "tools: {radar: {job: {retry: {rules: [{codes: [SENSOR_DOWN]}]}}}}")
    result = command("config", "check")
    assert (result.code, result.out) == (0, "config.yaml: fine\n")
    assert "tools.radar.job.retry.rules.0.codes: 'SENSOR_DOWN' is not an error code of the executor" in result.err


def test_sizes_are_shown_with_their_unit(command: Command, home: Path) -> None:
    """`config show` shows a size with a unit, and its JSON the bytes."""
    write(home, "job: {memory_limit: 200MiB}")
    assert "200 MiB" in command("config", "show").out
    assert command("config", "show", "--json").json[0]["value"] == 200 * 2**20


def test_each_setting_is_shown_with_its_source(command: Command, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`config show` lists each setting with its value and its source."""
    write(home, "collection: {job_timeout: 5, retry_delay: 5}\ntools: {radar: {rate: 2}}\n")
    (home / ".env").write_text("EXECUTOR_ADAPTER_COLLECTION__RETRY_DELAY=6\n")
    monkeypatch.setenv("EXECUTOR_ADAPTER_EXECUTOR__MAX_WORKERS", "7")
    found = {row["key"]: (row["value"], row["from"]) for row in command("config", "show", "--json").json}
    assert found == {
        "collection.job_timeout": (5.0, "config.yaml"),
        "collection.retry_delay": (6.0, ".env"),
        "executor.max_workers": (7, "environment"),
        "tools.radar.rate": (2.0, "config.yaml"),
    }
    assert re.search(r"^executor.max_workers +7 +environment", command("config", "show").out, re.MULTILINE)
    everything = {row["key"]: row["from"] for row in command("config", "show", "--all", "--json").json}
    assert everything["processing.batch_size"] == everything["job.retry.jitter"] == "default"


def test_secrets_are_not_shown(command: Command, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`config show` prints no password, token or key, but where a credential is."""
    write(
        home,
        "store: {url: 'postgresql://user:s3cret@host/jobs'}\n"
        "tools: {orders: {source: rest, url: 'http://a', credential: {env: ORDERS_TOKEN},"
        " resources: {r: {path: /r}}}}\n",
    )
    monkeypatch.setenv("ORDERS_TOKEN", "s3cret")
    for words in (("--json",), ("--all",)):
        out = command("config", "show", *words).out
        assert "s3cret" not in out
        assert "postgresql://user:(hidden)@host/jobs" in out
        assert "ORDERS_TOKEN" in out


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p/s3cret@h/db", "postgresql://u:(hidden)@h/db"),
        ("postgresql://u:p@s3cret@h/db", "postgresql://u:(hidden)@h/db"),
        ("postgresql://u:p#s3cret@h/db", "postgresql://u:(hidden)@h/db"),
        ("postgresql://u:p?s3cret@h/db", "postgresql://(hidden)"),
        ("postgresql://u/x:s3cret@h/db", "postgresql://u/x:(hidden)@h/db"),
        ("postgresql://u@company:s3cret@h/db", "postgresql://u@company:(hidden)@h/db"),
        ("postgresql://:s3cret@h", "postgresql://:(hidden)@h"),
        ("postgresql:/u:s3cret@h/db", "postgresql:(hidden)@h/db"),
        ("u:s3cret@h/db", "u:(hidden)@h/db"),
        ("postgresql://h/db?user=u&password=s3cret&sslmode=require", "postgresql://h/db?user=u&password=(hidden)&sslmode=require"),
        ("postgresql://h/db?password=p@s3cret", "postgresql://(hidden)"),
        ("https://h/api?API-Key=s3cret", "https://h/api?API-Key=(hidden)"),
        ("https://h/api?key=s3cret", "https://h/api?key=(hidden)"),
        ("postgresql://u@h:5432/db?sslmode=require", "postgresql://u@h:5432/db?sslmode=require"),
        ("sqlite:////a/jobs.db", "sqlite:////a/jobs.db"),
    ],
)  # fmt: skip
def test_of_a_url_everything_but_its_secrets_is_shown(command: Command, home: Path, url: str, shown: str) -> None:
    """A URL is shown with its password and secret query values hidden, and the rest unchanged."""
    write(home, f"store: {{url: {json.dumps(url)}}}")
    (row,) = command("config", "show", "--json").json
    assert row["value"] == shown


@pytest.mark.parametrize(
    "message",
    [
        "params: {apikey: s3cret}",
        "params: {api-key: s3cret}",
        "params: {key: s3cret}",
        "params: {auth: s3cret}",
        "params: {X-Authorization: s3cret}",
        "arguments: {credential: s3cret}",
        "arguments: {login: [{user: me, passwd: s3cret}]}",
        "arguments: {pin_token: 53637}",
    ],
)
def test_what_is_called_a_secret_is_not_shown(command: Command, home: Path, message: str) -> None:
    """A value whose key is named like a secret is hidden."""
    function = f"source: function, tables: {{r: {{function: 'a:b', {message}}}}}"
    rest = f"source: rest, url: 'http://a', resources: {{r: {{path: /r, {message}}}}}"
    write(home, f"tools: {{orders: {{{rest if message.startswith('params') else function}}}}}")
    for words in (("--json",), ()):
        out = command("config", "show", *words).out
        assert "(hidden)" in out
        assert not re.search("s3cret|53637", out)


def test_what_only_sounds_like_a_secret_is_shown(command: Command, home: Path) -> None:
    """A value whose key only resembles a secret's name is shown."""
    write(home, "tools: {authors: {source: rest, url: 'http://a', resources: {keys: {path: /r, key: isbn}}}}")
    found = {row["key"]: row["value"] for row in command("config", "show", "--json").json}
    assert found["tools.authors.url"] == "http://a"
    assert found["tools.authors.resources.keys.key"] == ["isbn"]


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:s3cret@h/db",
        "memoryx://u:s3cret@h/db",
        "postgrse//u:s3cret@h/db",
        "u/s3cret@h",
        "postgresql://u:p@s3cret@127.0.0.1:1/db",
        "postgresql://u:s3cret@h:port/db",
        "postgresql://127.0.0.1:1/db?password=s3cret&nonsense=1",
        "sqlite+nonsense://u:s3cret@h/db",
    ],
)
def test_a_url_that_is_refused_is_refused_in_one_line_without_its_password(command: Command, url: str) -> None:
    """The message about a wrong store URL is one line and does not contain the password."""
    for words in (("jobs", "list"), ("run", "math:sqrt", "-a", "4")):
        result = command(*words, "--store", url)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("executor-adapter: store.url: ")
        assert result.err.count("\n") == 1
        assert "s3cret" not in result.err


def test_a_store_is_named_without_secrets_of_its_query() -> None:
    """A store's URL is printed without the passwords in its query."""
    engine = make_engine("postgresql://user@127.0.0.1/none?password=s3cret&sslpassword=s3cret&sslmode=require")
    store = SqlStore(engine)
    assert store.url == "postgresql+psycopg://user@127.0.0.1/none?sslmode=require"
    store.close()


# --- the schema ---


def test_the_schema_is_a_schema_and_takes_the_project_s_own_file(command: Command) -> None:
    """`config schema` prints a valid JSON schema that accepts the project's config.yaml."""
    schema = command("config", "schema").json
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load((ROOT / "config.yaml").read_text()), schema)


def test_the_schema_beside_the_project_s_file_is_the_newest() -> None:
    """The committed schema equals what `config schema > config.schema.json` writes."""
    assert json.loads((ROOT / "config.schema.json").read_text()) == json_schema()
    first = (ROOT / "config.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=./config.schema.json"


@pytest.mark.parametrize(
    "wrong",
    [
        {"colection": {}},
        {"job": {"max_runtime": 0}},
        {"job": {"max_runtime": "long"}},
        {"job": {"retry": {"rules": [{"action": "fail"}]}}},
        {"collection": {"rate_limit_buffer": 1}},
        {"tools": {"radar": {"max_concurent": 1}}},
        {"tools": {"radar": {"source": "files"}}},
    ],
    ids=str,
)
def test_an_editor_marks_what_is_wrong(wrong: dict[str, Any]) -> None:
    """The schema rejects wrong keys and values."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json_schema())


@pytest.mark.parametrize(
    "right",
    [
        {"job": {"max_runtime": None, "memory_limit": "1GiB", "retry": {"rules": [{"codes": ["API_ERROR"]}]}}},
        {"executor": {"preload": "pandas"}},
        {"tools": {"radar": {"max_concurrent": 1, "job": {"pool": "process"}}}},
        {"store": {"url": "sqlite:///jobs.db"}, "monitoring": {"metrics_port": 9464}},
    ],
    ids=str,
)
def test_an_editor_takes_what_is_right(right: dict[str, Any]) -> None:
    """The schema accepts every form that the settings accept."""
    jsonschema.validate(right, json_schema())


def test_the_schema_describes_every_key() -> None:
    """Every key of the schema has a description, which editors show."""
    for name, section in json_schema()["$defs"].items():
        for key, described in section.get("properties", {}).items():
            assert described.get("description") or "$ref" in described, f"{name}.{key}"


def test_a_schema_is_json_with_and_without_the_option(command: Command) -> None:
    """`config schema` prints JSON with and without --json."""
    assert command("config", "schema", "--json") == command("config", "schema")
