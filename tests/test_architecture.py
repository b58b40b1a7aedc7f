"""Who may import whom: the table of wings, read from the imports themselves.

Run by hand, ``python tests/test_architecture.py``, it prints the lines of each wing."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parent.parent / "mlops_lib"
FLOORS = (
    ("wording",),
    ("errors", "redaction"),
    ("report", "task", "project_fields"),
    ("project",),
    ("engines.exact", "engines.warm"),
    ("data",),
    ("contracts", "quality", "models"),
    ("tracking",),
    ("registry",),
    ("gates",),
    ("programs.notebooks", "programs.batch", "programs.service", "programs.operate", "programs.release"),
    ("cli",),
)
RANKS = {wing: rank for rank, wings in enumerate(FLOORS) for wing in wings}
UPPER = ("programs", "engines", "cli")
LONGEST = 450  # lines of one file
WORDS = {"wording", "errors", "redaction", "report", "project", "project_fields", "task"}
# A wing that may import less than all below it, and one that may import a neighbour, each with its reason.
ONLY = {
    "engines.exact": {"errors", "wording"},
    "engines.warm": {"errors", "wording"},
}  # machines of their own: they know nothing of ours
SIDEWAYS = {
    ("programs.notebooks", "programs.batch"),  # a sweep on Spark finds its cluster as a batch does
    ("programs.operate", "programs.batch"),  # a tick scores what has come
    ("programs.operate", "programs.notebooks"),  # and has notebooks train and validate
    ("programs.release", "programs.batch"),  # a new project reads a database's table as a batch does
}
# Wings that read the environment, each with its reason.
ENVIRONMENT_READERS = {
    "project": "the one reader: everything else takes a Project",
    "cli": "sets how pyarrow allocates, before it is imported",
    "tracking": "puts back what MLflow tells the environment of the store that it uses",
    "engines.warm": "JupyterLab and papermill start it without a project, and a fork must get its client's environment",
}


def wing_of(name: str) -> str:
    """Return the wing of a module's name below ``mlops_lib``: its first part, or two of them on the upper floors."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in ("programs", "engines") else parts[0]


def name_of(file: Path) -> str:
    """Return the dotted name of a file below ``mlops_lib``; a package's is that of its ``__init__``."""
    return ".".join(file.relative_to(LIBRARY).with_suffix("").parts).removesuffix(".__init__")


def read_files() -> Iterator[tuple[str, str]]:
    """Yield name and source of every module but the ``__init__`` of the library and of its two upper floors."""
    for file in sorted(LIBRARY.rglob("*.py")):
        if name_of(file) not in ("__init__", "programs", "engines"):
            yield name_of(file), file.read_text(encoding="utf-8")


def imported_modules(source: str) -> set[str]:
    """Return the dotted names below ``mlops_lib`` that a module imports, wherever the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    found = {name.removeprefix("mlops_lib.") for name in names if name.startswith("mlops_lib.")}
    return {name for name in found if not name.startswith("__")}


def find_rank_faults(wing: str, source: str) -> list[str]:
    """Return the imports that go up, or sideways without being listed."""
    others = sorted({wing_of(name) for name in imported_modules(source)} - {wing})
    return [
        f"{wing} (rank {RANKS[wing]}) imports {other} (rank {RANKS.get(other, 'none')})"
        for other in others
        if (wing, other) not in SIDEWAYS
        and (RANKS.get(other, len(FLOORS)) >= RANKS[wing] or other not in ONLY.get(wing, {other}))
    ]


def find_circle(sources: Mapping[str, str]) -> list[str]:
    """Return the files of one circle of imports, or nothing.

    An import of a name that is no file of its own is one of the file that defines it, or of its package's.
    """

    def file_named(name: str) -> str:
        while name not in sources and "." in name:
            name = name.rpartition(".")[0]
        return name

    needs = {
        name: {file_named(other) for other in imported_modules(source)} & sources.keys() - {name}
        for name, source in sources.items()
    }
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


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


@pytest.mark.parametrize(("name", "source"), [pytest.param(*file, id=file[0]) for file in read_files()])
class TestEveryFile:
    def test_imports_only_wings_below_it(self, name: str, source: str) -> None:
        assert wing_of(name) in RANKS, f"{name} is in no wing of DESIGN.md"
        assert not find_rank_faults(wing_of(name), source)

    def test_imports_by_full_name_and_without_a_star(self, name: str, source: str) -> None:
        assert not find_relative_climbs(source), name
        assert not find_star_imports(source), name

    def test_reads_the_environment_only_where_a_reason_is_given(self, name: str, source: str) -> None:
        assert wing_of(name) in ENVIRONMENT_READERS or not find_environment_reads(source), name


def test_every_wing_of_the_table_exists() -> None:
    assert {wing_of(name) for name, _ in read_files()} == set(RANKS)


def test_only_the_task_chooses_between_probabilities_and_predictions() -> None:
    """An engine is told which of the two it stands in for; the text of an error shows one to people."""
    asking = [name for name, source in read_files() if "predict_proba" in source and not name.startswith("engines.")]
    assert asking == ["errors", "task"]


def test_no_files_import_each_other_in_a_circle() -> None:
    assert not find_circle(dict(read_files()))


def test_a_circle_between_files_is_found() -> None:
    sources = {
        "data.tables": "from mlops_lib.data.reads import note",
        "data.reads": "def late():\n    from mlops_lib.data import tables",
        "errors": "import os",
    }
    assert set(find_circle(sources)) == {"data.tables", "data.reads"}
    assert not find_circle({**sources, "data.reads": "from mlops_lib import errors"})


@pytest.mark.parametrize(
    ("wing", "source"),
    [
        ("tracking", "from mlops_lib import gates"),
        ("tracking", "import mlops_lib.gates"),
        ("tracking", "from mlops_lib.gates import Threshold"),
        ("tracking", "def late():\n    from mlops_lib import registry"),
        ("tracking", "if TYPE_CHECKING:\n    from mlops_lib.registry import Release"),
        ("quality", "from mlops_lib import contracts, data, errors"),
        ("errors", "from mlops_lib.report import Report"),
        ("wording", "from mlops_lib.errors import MlopsError"),
        ("cli", "from mlops_lib import no_such_wing"),
        ("engines.warm", "from mlops_lib.programs.notebooks.run import run_notebook"),
        ("engines.warm", "from mlops_lib.project import Project"),
        ("programs.batch", "from mlops_lib.programs import notebooks"),
    ],
)
def test_an_import_that_goes_up_or_sideways_is_found(wing: str, source: str) -> None:
    assert len(find_rank_faults(wing, source)) == 1


@pytest.mark.parametrize(
    ("wing", "source"),
    [
        ("registry", "from mlops_lib import data, models, tracking"),
        ("engines.warm", "from mlops_lib.engines.warm.server import send"),
        ("programs.operate", "from mlops_lib import __version__"),
        ("programs.notebooks", "from mlops_lib.programs.batch import cluster"),
        ("errors", "import os, json"),
    ],
)
def test_an_import_that_goes_down_or_out_is_no_fault(wing: str, source: str) -> None:
    assert not find_rank_faults(wing, source)


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


def test_looking_at_gates_loads_neither_scikit_learn_nor_statistics() -> None:
    slow = {"sklearn", "scipy.stats", "scipy.optimize", "matplotlib.pyplot"}
    assert not slow & loaded_modules("from mlops_lib import gates")


def test_a_loaded_framework_is_found() -> None:
    assert HEAVY & loaded_modules("from mlops_lib import data; data.read_table") >= {"pandas", "pyarrow"}


def print_lines() -> None:
    """Print the lines of each wing and floor, and each file that is longer than a file should be."""
    lines = {file: file.read_text(encoding="utf-8").count("\n") for file in sorted(LIBRARY.rglob("*.py"))}
    by_wing: Counter[str] = Counter()
    by_floor: Counter[str] = Counter()
    for file, n_lines in lines.items():
        wing = wing_of(name_of(file))
        floor = wing.partition(".")[0]
        by_wing[wing] += n_lines
        by_floor["words" if wing in WORDS else floor if floor in ("programs", "engines", "cli") else "library"] += (
            n_lines
        )
    for counts in (by_wing, by_floor):
        for name, n_lines in sorted(counts.items(), key=lambda item: RANKS.get(item[0], -1)):
            print(f"{n_lines:7,}  {name}")
        print()
    print(f"{by_floor['library'] + by_floor['words']:7,}  the library with the words")
    print(f"{sum(lines.values()):7,}  in all")
    for file, n_lines in lines.items():
        if n_lines > LONGEST:
            print(f"{n_lines:7,}  {file.relative_to(LIBRARY)} is longer than {LONGEST}")


if __name__ == "__main__":
    print_lines()
