"""Who may import whom: DESIGN.md's table of rooms, read from the imports themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parent.parent / "mlops_lib"
RANKS = {
    "errors": 0,
    **dict.fromkeys(("report", "reads"), 1),
    **dict.fromkeys(
        (
            *("project", "data", "contracts", "evaluation", "monitoring"),
            *("cluster", "compiled", "kernels", "store", "integrity", "liveness", "signing"),
        ),
        2,
    ),
    **dict.fromkeys(("tracking", "registry"), 3),
    **dict.fromkeys(("gates", "notebooks", "scoring", "serving"), 4),
    **dict.fromkeys(("comparison", "operate", "verify"), 5),
    "cli": 6,
}
# Rooms that read the environment, each with its reason.
ENVIRONMENT_READERS = {
    "project": "the one reader: everything else takes a Project",
    "cli": "sets how pyarrow allocates, before it is imported",
    "kernels": "JupyterLab and papermill start it without a project, and a fork must get its client's environment",
}


def room_of(file: Path) -> str:
    """Return the room of a file: its name, or its folder's, since a package is one room."""
    return file.relative_to(LIBRARY).parts[0].removesuffix(".py")


def read_files() -> Iterator[tuple[str, str, str]]:
    """Yield room, file name and source of every module but the package's own __init__."""
    for file in sorted(LIBRARY.rglob("*.py")):
        if file != LIBRARY / "__init__.py":
            yield room_of(file), str(file.relative_to(LIBRARY)), file.read_text(encoding="utf-8")


def imported_rooms(source: str) -> set[str]:
    """Return the rooms that a module imports, wherever the import stands; relative ones are of the same room."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("mlops_lib.")}
    return {room for room in found if not room.startswith("__")}


def find_rank_faults(room: str, source: str) -> list[str]:
    """Return the imports that go up or sideways."""
    others = sorted(imported_rooms(source) - {room})
    return [
        f"{room} (rank {RANKS[room]}) imports {other} (rank {RANKS.get(other, 'none')})"
        for other in others
        if other not in RANKS or RANKS[other] >= RANKS[room]
    ]


def find_relative_climbs(source: str) -> list[str]:
    """Return relative imports: inside the library every import says its full name."""
    nodes = ast.walk(ast.parse(source))
    return [f"line {node.lineno}" for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


def find_star_imports(source: str) -> list[str]:
    """Return ``from x import *``."""
    nodes = ast.walk(ast.parse(source))
    stars = (n for n in nodes if isinstance(n, ast.ImportFrom) and any(alias.name == "*" for alias in n.names))
    return [f"line {node.lineno}" for node in stars]


def find_environment_reads(source: str) -> list[str]:
    """Return uses of ``os.environ``, ``os.environb`` and ``os.getenv``, under whatever import."""
    names = {"environ", "environb", "getenv", "getenvb"}
    found = []
    for node in ast.walk(ast.parse(source)):
        is_attribute = (
            isinstance(node, ast.Attribute)
            and node.attr in names
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        )
        is_import = (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and any(alias.name in names for alias in node.names)
        )
        if is_attribute or is_import:
            found.append(f"line {node.lineno}")
    return found


def loaded_modules(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after ``code``."""
    code += "\nimport sys; print('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(("room", "name", "source"), [pytest.param(*f, id=f[1]) for f in read_files()])
class TestEveryFile:
    def test_imports_only_rooms_of_a_lower_rank(self, room: str, name: str, source: str) -> None:
        assert room in RANKS, f"{name} is no room of DESIGN.md"
        assert not find_rank_faults(room, source)

    def test_imports_by_full_name_and_without_a_star(self, room: str, name: str, source: str) -> None:
        assert not find_relative_climbs(source), name
        assert not find_star_imports(source), name

    def test_reads_the_environment_only_where_a_reason_is_given(self, room: str, name: str, source: str) -> None:
        assert room in ENVIRONMENT_READERS or not find_environment_reads(source), name


def test_every_room_of_the_table_exists() -> None:
    assert {room for room, _, _ in read_files()} == set(RANKS)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("tracking", "from mlops_lib import gates"),
        ("tracking", "import mlops_lib.gates"),
        ("tracking", "from mlops_lib.gates import Threshold"),
        ("tracking", "def late():\n    from mlops_lib import registry"),
        ("tracking", "if TYPE_CHECKING:\n    from mlops_lib.registry import Release"),
        ("store", "from mlops_lib import data, errors"),
        ("errors", "from mlops_lib.report import Report"),
        ("cli", "from mlops_lib import no_such_room"),
        ("kernels", "from mlops_lib.notebooks.run import run_notebook"),
    ],
)
def test_an_import_that_goes_up_or_sideways_is_found(room: str, source: str) -> None:
    assert len(find_rank_faults(room, source)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("registry", "from mlops_lib import data, integrity, reads, store"),
        ("kernels", "from mlops_lib.kernels.server import send"),
        ("operate", "from mlops_lib import __version__"),
        ("errors", "import os, json"),
    ],
)
def test_an_import_that_goes_down_or_out_is_no_fault(room: str, source: str) -> None:
    assert not find_rank_faults(room, source)


@pytest.mark.parametrize("source", ["from . import data", "from .data import x", "from .. import data"])
def test_a_relative_import_is_found(source: str) -> None:
    assert find_relative_climbs(source) == ["line 1"]


@pytest.mark.parametrize("source", ["from pandas import *", "def f():\n    pass\nfrom x.y import *"])
def test_a_star_import_is_found(source: str) -> None:
    assert len(find_star_imports(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import os\nx = os.environ['A']",
        "import os\nx = os.environ.get('A')",
        "import os\nx = os.getenv('A')",
        "from os import environ",
        "from os import getenv as g",
    ],
)
def test_a_read_of_the_environment_is_found(source: str) -> None:
    assert len(find_environment_reads(source)) == 1


def test_the_projects_own_copy_of_the_environment_is_no_read() -> None:
    assert not find_environment_reads("x = {**project.environ}")


HEAVY = {"mlflow", "pandas", "numpy", "sklearn", "pyarrow", "matplotlib", "papermill"}


def test_importing_the_package_loads_no_framework() -> None:
    assert not HEAVY & loaded_modules("import mlops_lib")


def test_help_loads_no_framework() -> None:
    assert not HEAVY & loaded_modules("from mlops_lib.cli import main\nmain(['--help'], standalone_mode=False)")


def test_help_of_every_command_loads_no_framework() -> None:
    code = "from mlops_lib.cli import main\nfor name in main.commands: main([name, '--help'], standalone_mode=False)"
    assert not HEAVY & loaded_modules(code)


def test_a_loaded_framework_is_found() -> None:
    assert HEAVY & loaded_modules("from mlops_lib import data") >= {"pandas", "pyarrow"}
