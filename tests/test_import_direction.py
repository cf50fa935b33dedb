"""Imports go one way, streams -> serving -> online_models, and each heavy library has one home."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("streams", "serving", "online_models")


class Rule(NamedTuple):
    """`modules` may be imported only in files whose path from the root starts with one of `homes`."""

    modules: tuple[str, ...]
    homes: tuple[str, ...]


RULES = (
    Rule(("streams",), ("streams/",)),
    Rule(("serving",), ("streams/", "serving/")),
    Rule(("confluent_kafka",), ("streams/",)),
    Rule(("faust", "mode", "aiokafka"), ("streams/monitor/",)),
    Rule(
        ("onnxruntime",),
        ("serving/ranker/session.py", "serving/content/encoder_session.py", "serving/training/quantize.py"),
    ),
    Rule(("onnx",), ("serving/training/", "serving/content/minilm_graph.py")),
    Rule(("tokenizers",), ("serving/content/encoder.py",)),
    Rule(("torch", "onnxscript"), ("serving/training/",)),
    Rule(("pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"), ()),
)


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of every absolute import, also of `importlib.import_module("name")`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.lineno, node.module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def violations(root: Path) -> tuple[int, list[str]]:
    """Number of files read, and each import that stands where it may not."""
    files = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    found = []
    for path in files:
        where = path.relative_to(root).as_posix()
        for line, name in imported(path.read_text("utf-8")):
            for rule in RULES:
                if name.split(".")[0] in rule.modules and not where.startswith(rule.homes or ("\0",)):
                    found.append(
                        f"{where}:{line} imports {name}; only {', '.join(rule.homes) or 'nobody'} may"
                    )
    return len(files), found


def test_imports_go_one_way() -> None:
    files, found = violations(ROOT)
    assert files >= 20, f"only {files} source files found under {ROOT}: the check looked at the wrong place"
    assert not found, "\n".join(found)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_looked_at(package: str) -> None:
    assert list((ROOT / package).rglob("*.py")), f"no source file in {package}"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("online_models/a.py", "import serving.pipeline"),
        ("online_models/a.py", "from streams import events"),
        ("serving/a.py", "def f():\n    from streams.topics import TOPICS"),
        ("serving/a.py", "from confluent_kafka import Consumer"),
        ("streams/worker.py", "import faust"),
        ("streams/worker.py", "import onnxruntime as ort"),
        ("serving/ranker/ranker.py", "import importlib\nimportlib.import_module('onnxruntime')"),
        ("serving/ranker/session.py", "import torch.nn"),
        ("serving/training/export.py", "import onnxruntime"),
        ("serving/content/encoder.py", "import onnxruntime"),
        ("streams/a.py", "import pickle"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, path: str, source: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source, "utf-8")
    files, found = violations(tmp_path)
    assert files == 1
    assert len(found) == 1
    assert found[0].startswith(path)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("online_models.item_state", ("confluent_kafka", "faust", "onnxruntime", "torch")),
        ("serving.content.opening", ("confluent_kafka", "faust", "torch", "onnx", "tokenizers")),
        ("serving.pipeline", ("confluent_kafka", "faust", "torch")),
        ("streams.settings", ("confluent_kafka", "faust", "onnxruntime", "torch", "numba")),
        ("streams.worker", ("faust", "torch")),
        ("streams.cli", ("faust", "torch")),
    ],
)
def test_a_process_loads_only_what_it_needs(module: str, absent: tuple[str, ...]) -> None:
    """What is imported in turn counts too: a worker that loads PyTorch costs a gigabyte."""
    code = f"import sys, {module}; print(*sorted(set({absent!r}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [], f"importing {module} loads {run.stdout.strip()}"
