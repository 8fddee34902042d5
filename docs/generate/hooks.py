"""Hooks of the site's build: generated tables in pages, and the diagram script where a page has a diagram.

A page asks for a generated part with a line of its own, `<!-- generated: NAME -->`; NAME is a key of `PARTS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

# The modules beside this one: mkdocs has its directory on the path while it loads a hook.
import api_tables
import benchmark_tables
import cli_tables
import event_tables
import metric_tables
import settings_tables

PARTS: dict[str, Callable[[], str]] = {
    "benchmark-environment": benchmark_tables.environment,
    "benchmark-results": benchmark_tables.results,
    "block-fields": api_tables.block_fields,
    "command-line": cli_tables.reference,
    "error-codes": api_tables.error_codes,
    "events": event_tables.reference,
    "exit-codes": cli_tables.exit_codes,
    "http-statuses": api_tables.http_statuses,
    "job-fields": api_tables.job_fields,
    "job-task-options": api_tables.job_task_options,
    "metrics": metric_tables.reference,
    "retry-policy-fields": api_tables.retry_policy_fields,
    "retry-rule-fields": api_tables.retry_rule_fields,
    "settings": settings_tables.reference,
}

_MARKER = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)
_DIAGRAM = re.compile(r'<pre class="mermaid">.*?</pre>', re.DOTALL)
DIAGRAM_SCRIPT = "assets/vendor/mermaid.tiny.js"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each marker by the part that it names; an unknown name fails the build."""
    return _MARKER.sub(lambda match: PARTS[match[1]](), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Put each diagram into an element that scrolls, so that it is readable on a phone."""
    return _DIAGRAM.sub(lambda match: f'<div class="diagram">{match[0]}</div>', html)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Load the diagram script before the theme's own, on the pages that have a diagram.

    The theme would otherwise load it from a server. The script has 2.5 MB, so other pages go without it.
    """
    if 'class="mermaid"' not in output:
        return output
    up = "../" * page.url.count("/")
    return output.replace("<script src=", f'<script src="{up}{DIAGRAM_SCRIPT}"></script><script src=', 1)
