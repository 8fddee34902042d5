"""A credential says where a secret is; the secret itself is in nothing that is shown, pickled or stored."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from executor_adapter.config import Credential, RestTool, Settings, SqlTool, hidden, load_config, redacted
from executor_adapter.exceptions import ConfigurationError

SECRET = "s3same-open-Sesame"
RUNS = {"runs": {"path": "/runs"}}


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERS_TOKEN", SECRET)


def tool(**fields: Any) -> RestTool:
    return RestTool.model_validate({"source": "rest", "url": "http://a", "resources": RUNS, **fields})


# --- the place ---


def test_a_variable_is_read_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A credential in the environment is read by each `resolve`, so a changed one is used at once."""
    credential = Credential(env="ORDERS_TOKEN")
    assert credential.resolve().get_secret_value() == SECRET
    monkeypatch.setenv("ORDERS_TOKEN", "another")
    assert credential.resolve().get_secret_value() == "another"


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_file_is_read_without_the_line_break_at_its_end(tmp_path: Path, end: str) -> None:
    """A credential in a file is the file's text; the line break that editors add is not part of it."""
    (tmp_path / "token").write_bytes(f"{SECRET}{end}".encode())
    assert Credential(file=tmp_path / "token").resolve().get_secret_value() == SECRET


def test_a_file_is_relative_to_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a credential's file is relative to the configuration file, not to the working directory."""
    monkeypatch.chdir("/")
    (tmp_path / "config.yaml").write_text(
        "tools: {orders: {source: rest, url: 'http://a', credential: {file: secrets/token}, resources: {r: {path: /}}}}"
    )
    orders = load_config(tmp_path / "config.yaml").tools["orders"]
    assert isinstance(orders, RestTool)
    assert orders.credential == Credential(file=tmp_path / "secrets" / "token")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"env": "NO_TOKEN"}, "the credential in the variable NO_TOKEN is missing or empty where the job runs: set it"),
        ({"env": "EMPTY"}, "the credential in the variable EMPTY is missing or empty where the job runs: set it"),
        (
            {"file": "/nowhere/token"},
            "the credential in the file /nowhere/token is missing or empty where the job",
        ),
        ({"file": "/"}, "the credential in the file / cannot be read: Is a directory"),
        ({"file": "/proc/self/exe"}, "the credential in the file /proc/self/exe is not UTF-8 text"),
    ],
)
def test_a_missing_secret_is_named_by_its_place(
    monkeypatch: pytest.MonkeyPatch, place: dict[str, Any], message: str
) -> None:
    """A secret that cannot be read is a ConfigurationError that names the place and the way out."""
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(ConfigurationError) as refused:
        Credential.model_validate(place).resolve()
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"env": "A", "file": "b"},
        {"env": SECRET},
        {"env": f"{SECRET}!"},
        {"secret_block": f"{SECRET}/"},
        {"token": SECRET},
        SECRET,
        [SECRET],
        {"env": [SECRET]},
    ],
)
def test_a_wrong_credential_is_refused_and_never_shown(tmp_path: Path, written: Any) -> None:
    """A credential has one place; a secret that was written in its stead is in no message."""
    file = tmp_path / "config.yaml"
    described = {"source": "rest", "url": "http://a", "resources": RUNS, "credential": written}
    file.write_text(json.dumps({"tools": {"orders": described}}))
    with pytest.raises(ConfigurationError, match=r"tools\.orders\.credential") as refused:
        load_config(file)
    assert SECRET not in str(refused.value)
    with pytest.raises(ValueError) as invalid:
        Credential.model_validate(written)
    assert SECRET not in str(invalid.value)


# --- what is shown of it ---


def test_nothing_of_a_credential_shows_the_secret(tmp_path: Path) -> None:
    """After it was read, the secret is in no repr, str, pickle or JSON of the credential, its tool or the settings."""
    orders = tool(url="http://a", credential=Credential(env="ORDERS_TOKEN"))
    assert orders.credential is not None
    read = orders.credential.resolve()
    settings = Settings(tools={"orders": orders})
    for each in (orders.credential, orders, settings, read):
        shown = (repr(each), str(each), "" if each is read else repr(pickle.dumps(each)))
        assert not any(SECRET in text for text in shown)
    assert SECRET not in settings.model_dump_json()
    assert str(orders.credential) == "variable ORDERS_TOKEN"
    assert pickle.loads(pickle.dumps(orders)) == orders


def test_the_place_of_a_credential_is_shown() -> None:
    """What shows the settings shows where a secret is, and hides what may be a secret."""
    assert hidden("tools.orders.credential.env", "ORDERS_TOKEN") == "ORDERS_TOKEN"
    assert hidden("tools.orders.credential.env", "a secret!") == "(hidden)"
    assert hidden("tools.orders.credential", "ORDERS_TOKEN") == "(hidden)"


def test_a_secret_that_was_read_is_redacted(tmp_path: Path) -> None:
    """`redacted` hides each secret that was read in this process, and each line of it, but none of three characters."""
    assert redacted("<second line of a key> abc") == "<second line of a key> abc"
    (tmp_path / "key").write_text("first line of a key\nsecond line of a key\nabc\n")
    Credential(file=tmp_path / "key").resolve()
    assert redacted("<second line of a key> abc") == "<(hidden)> abc"


@pytest.mark.parametrize("form", [quote, quote_plus, partial(quote, safe=" +"), repr, json.dumps])
def test_a_secret_that_was_read_is_redacted_where_it_is_escaped(
    monkeypatch: pytest.MonkeyPatch, form: Callable[[str], str]
) -> None:
    """A password with spaces, quotes and percent signs is hidden as drivers and URLs write it, too."""
    password = "100% pa'ss\"wörd/+"
    monkeypatch.setenv("ORDERS_TOKEN", password)
    Credential(env="ORDERS_TOKEN").resolve()
    assert redacted(f'invalid token "{form(password)}"').replace('"', "").replace("'", "") == "invalid token (hidden)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no answer of postgresql://u:pa ss@h/db: timeout", "no answer of postgresql://u:(hidden)@h/db: timeout"),
        ("postgresql://u:pa'ss\"@h/db", "postgresql://u:(hidden)@h/db"),
        ("postgresql://u:100%@h/db", "postgresql://u:(hidden)@h/db"),
        ("https://h/c?sv=1&sig=abc%2F&x=1 gave 403", "https://h/c?sv=1&sig=(hidden)&x=1 gave 403"),
        ("mssql+pyodbc:///?odbc_connect=Driver%3Dx%3BPWD%3Dy", "mssql+pyodbc:///?odbc_connect=(hidden)"),
        ("DRIVER={ODBC 18};UID=me;PWD={pa ss;}}x};Z=1", "DRIVER={ODBC 18};UID=me;PWD=(hidden);Z=1"),
        ("AccountName=a;AccountKey=abc+/==;X=y", "AccountName=a;AccountKey=(hidden);X=y"),
        (repr({"account_key": "ab'c", "n": 1}), "{'account_key': (hidden), 'n': 1}"),
        ("host=h password='my \\' secret' user=u", "host=h password=(hidden) user=u"),
        ("http://127.0.0.1:4200/api is away: mail me@x.org", "http://127.0.0.1:4200/api is away: mail me@x.org"),
        ("the token is missing: set it", "the token is missing: set it"),
        ("cut off: {'token': 'abc d", "cut off: {'token': (hidden)"),
        ("cut off: PWD={abc d", "cut off: PWD=(hidden)"),
        ("PWD=my secret;X", "PWD=(hidden);X"),
        ("authorization=Bearer abc", "authorization=(hidden)"),
        ("Authorization: Bearer x, retry", "Authorization: (hidden), retry"),
        ("Cookie: a=b; c=d\nnext: 1", "Cookie: (hidden)\nnext: 1"),
        ("password: x y", "password: (hidden) y"),
        ("mysql://root:123 456@h", "mysql://root:(hidden)@h"),
        ("http://h:80 is away: mail me@x", "http://h:80 is away: mail me@x"),
        ("tokenizer=a max_tokens=500 token_count=5", "tokenizer=a max_tokens=500 token_count=5"),
        ("AuthError: no answer", "AuthError: no answer"),
        ("sas=abc; has=abc", "sas=(hidden); has=abc"),
    ],
)
def test_what_is_named_like_a_secret_is_redacted(text: str, shown: str) -> None:
    """Passwords in URLs and values with the name of a secret are hidden in any text, and nothing else."""
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "part", ["a", "auth", "a.b-", "a://", "a://b:", "token={ ", "a?auth&", "pwd: abcdefgh ", "token=abcdefgh b"]
)
def test_a_long_text_is_redacted_in_linear_time(part: str) -> None:
    """A text of half a megabyte, such as an answer of a server, takes moments, and not hours."""
    text = part * (500_000 // len(part))
    assert len(redacted(text)) <= len(text)
    assert len(hidden("query", text)) <= len(text)


@pytest.mark.parametrize("key", ["account_key", "connection_string", "sig", "odbc_connect", "sas.sig", "sas"])
def test_values_with_the_name_of_a_secret_are_hidden(key: str) -> None:
    """The names of secrets of stores and databases are known; words that contain one are not secrets."""
    assert hidden(f"tools.orders.tables.t.arguments.{key}", "abc") == "(hidden)"
    assert hidden("tools.design.signal", "abc") == "abc"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"headers": {"Authorization": f"Bearer {SECRET}"}},
            'headers.Authorization: (hidden) is not allowed: must be "{',
        ),
        ({"headers": {"X-Api-Key": SECRET}}, 'headers.X-Api-Key: (hidden) is not allowed: must be "{credential}"'),
        (
            {"headers": {"X-Api-Key": "{credential}"}},
            "headers.X-Api-Key: '{credential}' is not allowed: must have the key",
        ),
        ({"url": f"https://ada:{SECRET}@api"}, "url: a URL with a password is not allowed: set username"),
        ({"url": f"https://api?sig={SECRET}"}, "url: a URL with a password is not allowed: set username"),
        ({"token_url": f"https://a:{SECRET}@api"}, "token_url: a URL with a password is not allowed: set username"),
        ({"username": "ada"}, "username: 'ada' is not allowed: must have the key credential beside it"),
    ],
)
def test_a_secret_in_the_configuration_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    """A secret that is written into the configuration is refused, and the message names the way and no secret."""
    file = tmp_path / "config.yaml"
    described = {"source": "rest", "url": "http://a", "resources": RUNS} | fields
    file.write_text(json.dumps({"tools": {"orders": described}}))
    with pytest.raises(ConfigurationError) as refused:
        load_config(file)
    assert str(refused.value).startswith(f"{file}: tools.orders.{message}")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "described",
    [
        {"source": "files", "tables": {"t": {"file": f"ftp://ada:{SECRET}@h/orders.csv"}}},
        {"source": "files", "tables": {"t": {"file": f"abfs://c/orders.csv?sas={SECRET}"}}},
        {"source": "files", "storage": {"client": {"token": SECRET}}, "tables": {"t": {"file": "s3://b/orders.csv"}}},
        {"source": "sql", "url": f"postgresql://h/d?password={SECRET}", "tables": {"t": {"table": "t"}}},
        {"source": "sql", "url": f"mssql+pyodbc:///?odbc_connect=PWD%3D{SECRET}", "tables": {"t": {"table": "t"}}},
        {"source": "sql", "url": f"mysql://root:a/{SECRET}?#b@h", "tables": {"t": {"table": "t"}}},
    ],
)
def test_a_secret_in_a_url_is_refused_whatever_the_source_is(tmp_path: Path, described: Any) -> None:
    """URLs of files and databases hold no more secrets than those of APIs do; options that are nested neither."""
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"tools": {"orders": described}}))
    with pytest.raises(ConfigurationError, match="is not allowed: ") as refused:
        load_config(file)
    assert SECRET not in str(refused.value)


def test_a_url_that_names_a_method_is_not_refused() -> None:
    """What only sounds like a secret, such as the way to sign in, may be in a URL."""
    url = "snowflake://me@h/d?authenticator=externalbrowser&passfile=/etc/pgpass"
    assert SqlTool.model_validate({"source": "sql", "url": url, "tables": {"t": {"table": "t"}}}).url == url
