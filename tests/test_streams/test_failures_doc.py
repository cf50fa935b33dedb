"""docs/failures.md names a test for each trouble: each of them is there, and marked slow where it says so."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "failures.md").read_text("utf-8")


def _tests() -> dict[str, bool]:
    """Names of test functions and modules; of functions, whether they or their module are marked slow."""
    found: dict[str, bool] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        source = path.read_text("utf-8")
        found[path.stem] = False
        whole = "pytest.mark.slow" in (re.findall(r"^pytestmark = .*", source, re.MULTILINE) or [""])[0]
        found[path.stem] = whole
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found[node.name] = whole or any("mark.slow" in ast.unparse(d) for d in node.decorator_list)
    return found


def test_every_test_that_is_named_exists_and_is_as_slow_as_it_says() -> None:
    known = _tests()
    named = re.findall(r"`(?:tests/[\w/]*/)?(test_\w+)(?:\.py)?`( \(\*slow\*)?", DOC)
    assert len(named) > 30
    for name, slow in named:
        assert name in known, name
        assert known[name] == bool(slow), f"{name}: slow in one place only"


def test_every_trouble_names_what_shows_it() -> None:
    rows = [line for line in DOC.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    troubles = [row for row in rows if not row.startswith("| trouble |")]
    assert len(troubles) > 35
    for row in troubles:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 5, row
        assert "test" in cells[4], row
