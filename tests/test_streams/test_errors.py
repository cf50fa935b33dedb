from __future__ import annotations

import inspect
import re

from streams import errors
from streams.errors import FreshetError


def _drawn() -> dict[str, str]:
    """Parent by class, as the module's docstring draws the tree."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ([│├└─ ]*)(\w+Error)\b", line)
        if found is None:
            continue
        depth = len(found[1])
        while above and above[-1][0] >= depth:
            above.pop()
        if above:
            parents[found[2]] = above[-1][1]
        above.append((depth, found[2]))
    return parents


def test_the_drawn_tree_is_the_tree() -> None:
    classes = dict(inspect.getmembers(errors, inspect.isclass))
    real = {name: kind.__bases__[0].__name__ for name, kind in classes.items() if kind is not FreshetError}
    assert _drawn() == real
    assert sorted(classes) == errors.__all__


def test_every_error_is_caught_by_the_command_line() -> None:
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), FreshetError)
