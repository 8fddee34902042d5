"""The data file of the benchmarks, which the documentation shows."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from tests.benchmarks.data_file import save
from tests.benchmarks.figures import Figures, Row

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_a_run_replaces_the_rows_that_it_measures(tmp_path: Path) -> None:
    """Rows of the same name are replaced, others stay, and every round is in the file."""
    path = tmp_path / "benchmarks.json"
    first = Row(what="jobs/s", ours="10", figure=1.0, at_least=2.0, rounds={"ours": Figures((9.0, 11.0))})
    save([(first, 0.1), (Row(what="other", ours="3", figure=3.0), 0.1)], path)

    save([(Row(what="jobs/s", ours="30", figure=3.0, at_least=2.0, rounds={"ours": Figures((30.0,))}), 0.2)], path)

    data = json.loads(path.read_text())
    assert [(row["what"], row["figure"], row["is_met"]) for row in data["rows"]] == [
        ("jobs/s", "3.00", True),
        ("other", "3.00", True),
    ]
    assert data["rows"][0]["rounds"] == {"ours": [30.0]}
    assert data["environment"]["cores"] >= 1


def test_the_name_of_a_row_has_no_figure_of_its_run() -> None:
    """A row that was named by what a run has measured would not be replaced by the next run."""
    named = [
        f"{path.name}:{node.lineno}: {ast.unparse(node.value)}"
        for path in sorted(BENCHMARKS.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "what" and _is_measured(node.value)
    ]
    assert not named


def _is_measured(what: ast.expr) -> bool:
    """Return whether a name has a spread, or a number with digits after its point."""
    text = ast.unparse(what)
    specs = [each.format_spec for each in ast.walk(what) if isinstance(each, ast.FormattedValue) and each.format_spec]
    return ".summary(" in text or any("." in ast.unparse(spec) for spec in specs)
