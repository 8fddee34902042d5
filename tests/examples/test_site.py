"""The documentation site builds strictly, loads nothing from a network, and its reference is complete."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlsplit

import prometheus_client.parser
import pytest
import typer
from prefect import Task
from pydantic import BaseModel

import executor_adapter
import executor_adapter.prefect
import executor_adapter.pytest
from executor_adapter import (
    ErrorCode,
    Job,
    JobExecutor,
    RetryPolicy,
    RetryRule,
    exceptions,
    monitoring,
    pipeline,
    store,
    testing,
)
from executor_adapter.cli.app import app
from executor_adapter.config import MonitoringSettings, Settings
from executor_adapter.prefect import JobEvents, JobExecutorBlock, JobTask, JobTaskRunner, PrefectMirror, emit_alert
from executor_adapter.scheduler import CollectionScheduler, ProcessingScheduler
from tests.acceptance.browser import chromium
from tests.servers import ROOT
from tests.waiting import PATIENCE


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it, with no way to a network."""
    if importlib.util.find_spec("mkdocs") is None:
        message = "mkdocs is not installed: run `make check`, or pip install -e '.[docs]'"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    directory = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9") | {
        "no_proxy": "127.0.0.1"
    }
    env = os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(directory)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


Reference = Callable[[str], set[str]]


@pytest.fixture(scope="session")
def reference(site: Path) -> Reference:
    """What a page of the reference has: the texts of its code, and the ids of its headings."""

    def words(page: str) -> set[str]:
        content = (site / "reference" / f"{page}.html").read_text()
        code = {
            unescape(re.sub(r"<[^>]+>", "", each)) for each in re.findall(r"<code>(.*?)</code>", content, re.DOTALL)
        }
        return code | set(re.findall(r'\bid="([^"]+)"', content))

    return words


def test_the_site_loads_nothing_from_a_network(site: Path) -> None:
    """No page has a script, a style sheet, a font or a picture of another server's, and no style sheet imports one."""
    loads = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^\s>]*")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    assert [(page.name, found) for page in pages for found in loads.findall(page.read_text())] == []
    from_css = re.compile(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\"']+")
    assert [found for sheet in site.rglob("*.css") for found in from_css.findall(sheet.read_text())] == []


def test_a_page_with_a_diagram_brings_what_draws_it(site: Path) -> None:
    """Such a page loads the script from the site itself, before the theme would look for it elsewhere."""
    with_diagram = [page for page in site.rglob("*.html") if 'class="mermaid"' in page.read_text()]
    assert with_diagram
    for page in with_diagram:
        (first, *_) = re.findall(r'<script src="([^"]+)"', page.read_text())
        assert (page.parent / first).resolve() == site / "assets/vendor/mermaid.tiny.js"
        assert (page.parent / first).exists()


# --- completeness of the reference ---


@pytest.mark.parametrize(
    ("page", "model"),
    [("jobs", Job), ("retries", RetryPolicy), ("retries", RetryRule), ("prefect", JobExecutorBlock)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_field_is_in_the_reference(page: str, model: type[BaseModel], reference: Reference) -> None:
    """Each field of a job, a policy, a rule and a block is in a table, or has a heading."""
    found = {word.rpartition(".")[2] for word in reference(page)}
    assert {name for name in model.model_fields if not name.startswith("_")} <= found


def test_every_member_of_a_job_is_in_the_reference(reference: Reference) -> None:
    """Each read-only property of a job has a heading."""
    properties = {name for name, value in vars(Job).items() if isinstance(value, property)}
    assert {f"executor_adapter.Job.{name}" for name in properties if not name.startswith("_")} <= reference("jobs")


METHODS: tuple[tuple[str, str, type], ...] = (
    ("executor", "executor_adapter", JobExecutor),
    ("prefect", "executor_adapter.prefect", PrefectMirror),
    ("prefect", "executor_adapter.prefect", JobTask),
    ("stores", "executor_adapter.store", store.JobStore),
    ("schedulers", "executor_adapter.scheduler", CollectionScheduler),
    ("schedulers", "executor_adapter.scheduler", ProcessingScheduler),
    ("testing", "executor_adapter.testing", testing.InlineExecutor),
)


@pytest.mark.parametrize(("page", "module", "kind"), METHODS, ids=lambda value: getattr(value, "__name__", value))
def test_every_public_method_is_in_the_reference(page: str, module: str, kind: type, reference: Reference) -> None:
    """Each public method and property of a class has a heading, and each parameter of its constructor is shown."""
    own = [each for each in kind.__mro__ if each.__module__.startswith("executor_adapter")]
    own = own[:1] if page == "testing" else own  # an inline executor is a JobExecutor, whose page has the rest
    names = {name for each in own for name, value in vars(each).items() if _is_public_member(name, value)}
    found = reference(page)
    assert {f"{module}.{kind.__name__}.{name}" for name in names} <= found
    if "__init__" in vars(own[-1]):
        shown = " ".join(found)
        parameters = inspect.signature(own[-1].__init__).parameters.keys() - {"self"}
        assert [name for name in parameters if not re.search(rf"\b{name}\b", shown)] == []


def _is_public_member(name: str, value: object) -> bool:
    return not name.startswith("_") and (inspect.isroutine(value) or isinstance(value, property))


PUBLIC: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (executor_adapter, ("jobs", "retries", "executor", "schedulers", "error-codes")),
    (executor_adapter.prefect, ("prefect",)),
    (store, ("stores",)),
    (monitoring, ("monitoring",)),
    (testing, ("testing",)),
    (pipeline, ("pipeline", "pipeline-sources", "pipeline-tables")),
    (executor_adapter.pytest, ("testing",)),
    (exceptions, ("exceptions",)),
)


FOR_OTHER_PARTS = {
    "executor_adapter.store": {
        *("JOB_FIELDS", "call_fields", "close_host", "given_fields", "new_host", "readable_call", "restore"),
        *("SignedPickles", "Unpickle", "signed_pickles"),
    },
    "executor_adapter.monitoring": {
        *("INSIDE", "JobTracer", "MetricsPort", "SpanScope", "export_metrics", "ready_checks", "tracer_in_use"),
        *("Finding", "Level", "fine", "warning", "wrong"),
    },
}
"""What these modules export for other parts of the package alone: no user needs it."""


@pytest.mark.parametrize(("module", "pages"), PUBLIC, ids=lambda value: getattr(value, "__name__", ""))
def test_every_public_name_is_in_the_reference(module: Any, pages: tuple[str, ...], reference: Reference) -> None:
    """Each name that a public module exports has a heading on a page of the reference."""
    found = {word for page in pages for word in reference(page)}
    names = {f"{module.__name__}.{name}" for name in _exported(module)}
    assert names
    assert sorted(names - found) == []


def _exported(module: Any) -> Iterable[str]:
    names = getattr(module, "__all__", None)
    if names is None:  # Each is imported `as` itself, or defined there.
        names = re.findall(r"^(?:def |from .+ import \w+ as )([a-zA-Z]\w*)", inspect.getsource(module), re.MULTILINE)
    return set(names) - FOR_OTHER_PARTS.get(module.__name__, set())


def test_every_option_of_a_job_task_is_in_the_reference(reference: Reference) -> None:
    """Each field of a Job but those of one call, and each option of a Prefect task; a job task takes them all."""
    of_job = Job.model_fields.keys() - {"function", "args", "kwargs", "job_id"}
    of_task = inspect.signature(Task.__init__).parameters.keys() - {"self", "fn"} | {"assets"}
    assert of_job | of_task <= reference("job-task-options")
    with pytest.raises(TypeError, match="no option 'surely_none'"):
        JobTask(print, surely_none=1)


def test_every_option_of_a_task_runner_is_in_the_reference(reference: Reference) -> None:
    """Each parameter of `JobTaskRunner` is shown."""
    shown = " ".join(reference("prefect"))
    parameters = inspect.signature(JobTaskRunner.__init__).parameters.keys() - {"self"}
    assert [name for name in parameters if not re.search(rf"\b{name}\b", shown)] == []


def test_every_setting_is_in_the_reference(reference: Reference) -> None:
    """Each key of each section, of each kind of tool and of a retry rule."""
    schema = Settings.model_json_schema()
    keys = {key for part in schema["$defs"].values() for key in part.get("properties", {})}
    sections = {key for key, part in schema["properties"].items() if "$ref" in part}
    inner = {"retry", "job", "job_task"}  # sections of their own inside others
    shown = {word.rpartition(".")[2] for word in reference("settings")}
    assert keys - inner - {"tables", "resources", "ssh", "dask"} <= shown
    assert sections | {"lake", "tools"} <= reference("settings")
    variables = {f"EXECUTOR_ADAPTER_{key}".upper() for key in _settings(Settings) if "__" in key}
    assert sorted(variables - reference("settings")) == []


def _settings(model: type[BaseModel]) -> Iterator[str]:
    """Yield each key that is a single value, with its sections before it."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            yield from (f"{name}__{key}" for key in _settings(kind))
        else:
            yield name


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for name, below in command.commands.items():
            yield from _commands(f"{path}-{name}".strip("-"), below)
    else:
        yield path, command


@pytest.mark.parametrize(
    ("path", "command"), list(_commands("", typer.main.get_command(app))), ids=lambda value: str(value)
)
def test_every_command_is_in_the_reference(path: str, command: Any, reference: Reference, site: Path) -> None:
    """Each command has a heading, and each of its options is below it."""
    assert path in reference("command-line")
    content = (site / "reference" / "command-line.html").read_text()
    section = content.partition(f'id="{path}"')[2].partition("<h2")[0]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    assert sorted(option for option in options if option not in section) == []


def test_every_error_code_is_in_the_reference(reference: Reference) -> None:
    """Each member of ErrorCode."""
    assert set(map(str, ErrorCode)) <= reference("error-codes")


def test_every_metric_is_in_the_reference(reference: Reference) -> None:
    """Each metric that an executor serves, under the name by which Prometheus asks for it."""
    settings = Settings(monitoring=MonitoringSettings(metrics_port=0))
    with testing.InlineExecutor(config=settings) as executor:
        executor.submit(Job(function=int))
        assert executor.metrics_url is not None
        with urllib.request.urlopen(executor.metrics_url, timeout=PATIENCE) as answer:
            families = list(prometheus_client.parser.text_string_to_metric_families(answer.read().decode()))
    names = {each.name + ("_total" if each.type == "counter" else "") for each in families}
    assert len(names) >= 9
    assert {name for name in names if not name.endswith("_created")} <= reference("metrics")


def test_every_event_is_in_the_reference(reference: Reference) -> None:
    """Each event of a job and each alert, by its full name, and each whose name stands where it is emitted."""
    jobs = importlib.import_module(JobEvents.__module__)
    alerts = importlib.import_module(emit_alert.__module__).HEALTH_PREFIX
    names = {jobs.PREFIX + kind for kind in jobs.KINDS} | {f"{alerts}{kind}" for kind in monitoring.AlertKind}
    assert len(names) >= 10
    source = "".join(file.read_text() for file in (ROOT / "executor_adapter").rglob("*.py"))
    written = set(re.findall(r'emit_event\(\s*event="([^"]+)"', source))
    assert written
    assert names | written <= reference("events")


def test_no_field_is_left_without_a_meaning(site: Path) -> None:
    """Each row of a generated table says what its name means."""
    for page in ("jobs", "retries", "job-task-options", "error-codes", "metrics", "events", "settings"):
        content = (site / "reference" / f"{page}.html").read_text()
        rows = re.findall(r"<tr>\s*<td>(.*?)</tr>", content, re.DOTALL)
        assert rows, page
        assert [row for row in rows if re.search(r"<td>\s*</td>\s*$", row)] == [], page


ANSWERS = {
    "10000 jobs": "how-to/many-jobs",
    "retry only network errors": "how-to/retries",
    "killed after 60 seconds": "how-to/timeouts",
    "deadlock": "how-to/scaling",
    "print": "how-to/prefect-ui",
    "kubernetes": "how-to/deploy/kubernetes",
    "out of memory": "how-to/memory",
    "macos": "how-to/pools",
    "cancel": "how-to/cancelling",
    "celery": "how-to/from-celery",
    "dask": "how-to/from-prefect-dask",
    "secret": "how-to/secrets",
    "progress bar": "how-to/progress",
    "deploy": "how-to/deployments",
    "test": "how-to/testing",
    "schedule": "how-to/schedulers",
    "rate limit": "how-to/queues",
    "prometheus": "how-to/monitoring",
}
"""The page that answers what people search for."""


def test_a_search_finds_the_page_that_answers_first(site: Path) -> None:
    """The search of the site, in a real browser, lists the right page first."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(site))

        def log_message(self, *args: Any) -> None:
            """Print nothing."""

    found = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, chromium() as browser:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        for question in ANSWERS:
            page.goto(f"http://127.0.0.1:{server.server_port}/?q={quote_plus(question)}")
            first = page.wait_for_selector(".md-search-result__item a", state="attached", timeout=PATIENCE * 1000)
            assert first is not None
            found[question] = urlsplit(str(first.get_attribute("href"))).path.strip("/").removesuffix(".html")
        server.shutdown()
    assert found == ANSWERS
