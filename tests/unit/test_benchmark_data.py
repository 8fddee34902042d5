"""The data file of the benchmarks, which the documentation shows."""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks.data_file import save
from tests.benchmarks.figures import Figures, Row


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
