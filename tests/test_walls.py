"""The shape of the program, read from its source: who may import what, and what is never written."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from launch import ROOT

PACKAGE = ROOT / "mpinn"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))

WALLS = {
    "mpi4py": {"comm"},
    "cupy": {"array"},
    "cupyx": {"array"},
    "cudnn": {"array"},
    "nvmath": {"array"},
    "numba": {"array"},
    "h5py": {"storage", "datasets"},
}
"""Who may import what: the only folders for each library."""

ORDER = [
    {"errors", "screen", "signals", "trace", "words"},
    {"evaluation", "length"},
    {"tables"},
    {"config", "array"},
    {"nn", "comm", "datasets"},
    {"models", "storage"},
    {"partition"},
    {"schedules", "consensus"},
    {"training"},
    {"population"},
    {"run"},
    {"bench"},
    {"commands"},
    {"scaling"},
    {"cli"},
    {"__main__"},
]
"""Modules and folders from the lowest to the highest: each imports from lower ones, or from its own folder."""

ANALYSIS = {"array", "config", "datasets", "errors", "evaluation", "models", "nn", "screen", "words"} | {
    f"storage.{module}" for module in ("damage", "directory", "history", "index", "lock", "reader", "restore", "schema")
}
"""What offline analysis imports; in ``storage`` only what reads, and ``lock``, which tells who trains."""

FORBIDDEN = {"worker", "strategy", "manager", "helper", "helpers", "util", "utils", "base", "common"}


def module(path: Path) -> str:
    """``mpinn/nn/part.py`` -> ``nn.part``; the package itself is the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """The full names of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: an import relative to the file"
            for alias in node.names:
                below = PACKAGE.parent / (node.module or "").replace(".", "/") / alias.name
                inside = below.is_dir() or below.with_suffix(".py").exists()
                yield f"{node.module}.{alias.name}" if inside else str(node.module)


def own(path: Path) -> Iterator[str]:
    """The modules of the program that a file imports, without the name of the package, which is below all."""
    yield from (name.removeprefix("mpinn.") for name in imports(path) if name.startswith("mpinn."))


def place(name: str) -> int | None:
    """Where a module stands in the order."""
    top = name.split(".")[0]
    return next((level for level, names in enumerate(ORDER) if top in names), None)


def test_libraries_stay_behind_their_walls() -> None:
    seen = [(module(path), name.split(".")[0]) for path in FILES for name in imports(path)]
    assert {"mpi4py", "h5py"} <= {library for _, library in seen}
    assert [pair for pair in seen if pair[1] in WALLS and pair[0].split(".")[0] not in WALLS[pair[1]]] == []


def test_imports_point_downward() -> None:
    assert "comm.grid" in own(PACKAGE / "cli/main.py")
    wrong = []
    for path in FILES:
        name = module(path)
        top, level = name.split(".")[0], place(name)
        if top in ("", "analysis"):
            continue
        assert level is not None, f"{name} stands nowhere in the order"
        for found in own(path):
            below = place(found)
            lower = below is not None and below < level
            command = top == "cli" and found.startswith("analysis.")
            if not (lower or found.split(".")[0] == top or command):
                wrong.append(f"{name} imports {found}")
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter({module(path): {*own(path)} for path in FILES}).prepare()


def test_analysis_needs_only_what_reads() -> None:
    seen = [(module(path), name) for path in FILES if "analysis" in path.parts for name in own(path)]
    assert ("analysis.inspect", "storage.reader") in seen
    known = ANALYSIS | {"analysis"}
    assert [pair for pair in seen if pair[1].split(".")[0] not in known and pair[1] not in known] == []


def test_no_communicator_or_device_is_made_when_a_module_is_imported() -> None:
    made = {"connect", "World", "Grid", "open_channel", "open_local", "MpiChannel", "NullChannel", "Dup", "Split"}
    wrong = []
    for path in FILES:
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                continue
            for node in ast.walk(statement):
                called = node.func if isinstance(node, ast.Call) else None
                name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                if name in made or (isinstance(node, ast.Attribute) and node.attr.startswith("COMM_")):
                    wrong.append(f"{path}:{statement.lineno}")
    assert wrong == []


def unordered(node: ast.expr) -> bool:
    """Whether what is gone through may come in another order on another rank: a set, of which names are hashed anew."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in ("set", "frozenset")
    if isinstance(node, ast.BinOp):
        operands = [node.left, node.right]
        views = [
            isinstance(x, ast.Call) and isinstance(x.func, ast.Attribute) and x.func.attr == "keys" for x in operands
        ]
        return any(views) or any(map(unordered, operands))
    return isinstance(node, ast.Set | ast.SetComp)


def test_ranks_go_through_names_in_the_same_order() -> None:
    """Where messages are sent, and what is sent is told apart by its turn."""
    wrong = []
    for path in FILES:
        if module(path).split(".")[0] not in ("comm", "consensus", "schedules", "training", "population"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            loops = [node.iter] if isinstance(node, ast.For | ast.comprehension) else []
            wrong += [f"{path}:{found.lineno}" for found in loops if unordered(found)]
    assert wrong == []
    assert unordered(ast.parse("{*a} - b.keys()").body[0].value)  # type: ignore[attr-defined]
    assert not unordered(ast.parse("sorted({*a})").body[0].value)  # type: ignore[attr-defined]


def test_no_file_is_longer_than_400_lines() -> None:
    files = [*FILES, *(ROOT / "tests").rglob("*.py")]
    assert [str(path) for path in files if len(path.read_text().splitlines()) > 400] == []


def test_things_have_the_names_of_the_field() -> None:
    for path in FILES:
        classes = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
        words = [word for name in classes for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
        words += [word for part in path.relative_to(PACKAGE).with_suffix("").parts for word in part.split("_")]
        assert not {word.lower() for word in words} & FORBIDDEN, path


HEAVY = {"numpy", "mpi4py", "numba", "h5py", "msgspec", "matplotlib", "cupy", "torch"}


MAIN = """
from mpinn.cli.main import main
try:
    main({arguments})
except SystemExit as left:
    assert not left.code
"""


@pytest.mark.parametrize(
    "program", ["import mpinn", MAIN.format(arguments=["--help"]), MAIN.format(arguments=["train", "-h"])]
)
def test_what_does_not_train_imports_nothing_heavy(program: str) -> None:
    told = f"import sys\n{program}\nprint('modules', *{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "mpinn" in loaded
    assert not loaded & HEAVY
