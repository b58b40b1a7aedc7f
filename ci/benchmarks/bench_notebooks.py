"""How long do twelve notebooks take that only import MLflow and scikit-learn: stock tools and ours, in one run.

Every way runs the same files. The ways take turns, round by round, so that a machine that is busy for a while is busy
for all of them. Each is a fresh process from start to exit, as CI would start it; "running process" is the exception.
The ratios that the README quotes compare commands: a loop of ``papermill`` with one ``mlops run`` of all. Stock tools
get plain kernels and compiled bytecode, ours a runtime folder of its own whose server is stopped before each cold
round, so that starting it and its imports count.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import benchmark
import nbformat
from nbformat.v4 import new_code_cell, new_notebook

N_NOTEBOOKS = 12
PACKAGES = (
    "papermill",
    "nbclient",
    "nbval",
    "nbmake",
    "pytest",
    "ipykernel",
    "jupyter-client",
    "mlflow",
    "scikit-learn",
)
CELLS = (
    "import mlflow",
    "from sklearn.datasets import make_classification\nfrom sklearn.linear_model import LogisticRegression",
    "X, y = make_classification(random_state={number})\nmodel = LogisticRegression(C=alpha).fit(X, y)",
    "round(model.score(X, y), 2)",
    "mlflow.__version__",
)
PROJECT = """from pathlib import Path
from mlops_lib.project import Project
project = Project(name="bench", root=Path(__file__).parent.parent, target="y", keys=("id",), features=("x",),
    arrivals="arrivals/{period}.parquet", labels="labels/{period}.parquet")
"""
POOL = """
import sys
from concurrent.futures import ProcessPoolExecutor
import papermill
def run(path):
    papermill.execute_notebook(path, path.replace("notebooks/", "out/"), parameters={"alpha": 0.5}, progress_bar=False)
if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(run, sys.argv[1:]))
"""
OURS = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from mlops_lib.engines import warm
from mlops_lib.programs import notebooks
warm.prepare()  # as the command line does: its imports and ours at the same time
from mlops_lib.project import load_project
def run_all():
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda path: notebooks.run_notebook(project, path, {"alpha": 0.5}), sys.argv[1:]))
project = load_project()
assert len(run_all()) == len(sys.argv) - 1
started = time.perf_counter()
"""
AGAIN = OURS + "run_all()\nprint(time.perf_counter() - started)\n"


class Bench:
    """The notebooks in a folder of their own, and the ways to run them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runtime = folder, folder / "k"
        self.paths = [str(write_notebook(folder / "notebooks", number)) for number in range(N_NOTEBOOKS)]
        (folder / "notebooks/project.py").write_text(PROJECT)
        (folder / "papermill_pool.py").write_text(POOL)
        (folder / "out").mkdir()
        (folder / "pytest.ini").write_text("[pytest]\n")
        kept = {name: value for name, value in os.environ.items() if name != "JUPYTER_DEFAULT_PROVISIONER_NAME"}
        self.env = kept | {
            "MLOPS_RUNTIME_DIR": str(self.runtime),
            "MLOPS_PROJECT": str(folder / "notebooks/project.py"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "MLOPS_STATE_DIR": "",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }

    def call(self, *command: str) -> str:
        """Run a command to its end; anything but success stops the benchmark with what it said."""
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{command[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    def stop(self) -> None:
        """End our server, so that the next round is cold."""
        self.call(sys.executable, "-c", "from mlops_lib.engines import warm; warm.stop()")
        shutil.rmtree(self.runtime, ignore_errors=True)

    def run_papermill_loop(self) -> None:
        """Call papermill's command once per notebook."""
        for path in self.paths:
            out = path.replace("notebooks/", "out/")
            self.call("papermill", "--no-progress-bar", "-p", "alpha", "0.5", path, out)

    def run_papermill_pool(self) -> None:
        """Call papermill's function in two processes."""
        self.call(sys.executable, "papermill_pool.py", *self.paths)

    def run_nbval(self) -> None:
        """Check with nbval that every cell runs."""
        self.call("pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax", *self.paths)

    def run_nbmake(self) -> None:
        """Check with nbmake that every notebook runs, two at a time."""
        self.call("pytest", "-q", "-p", "no:cacheprovider", "--nbmake", "-n2", *self.paths)

    def run_ours(self) -> None:
        """Call our function, four at a time."""
        self.call(sys.executable, "-c", OURS, *self.paths)

    def run_ours_again(self) -> float:
        """Call our function in a process that has just run the same notebooks; return its own time."""
        return float(self.call(sys.executable, "-c", AGAIN, *self.paths))

    def run_ours_loop(self) -> None:
        """Call our command once per notebook."""
        for path in self.paths:
            self.call("mlops", "run", path, "-p", "alpha=0.5")

    def run_ours_at_once(self) -> None:
        """Call our command once for all notebooks, four at a time."""
        self.call("mlops", "run", *self.paths, "-p", "alpha=0.5", "-j", "4")


WAYS: dict[str, tuple[Callable[[Bench], float | None], bool]] = {  # the way, and whether it starts cold
    "`papermill` command, one after the other": (Bench.run_papermill_loop, False),
    "`papermill.execute_notebook`, 2 processes": (Bench.run_papermill_pool, False),
    "`pytest --nbval-lax`": (Bench.run_nbval, False),
    "`pytest --nbmake -n2`": (Bench.run_nbmake, False),
    "`notebooks.run_notebook`, 4 threads, cold": (Bench.run_ours, True),
    "`notebooks.run_notebook`, 4 threads, warm": (Bench.run_ours, False),
    "… the same in a running process": (Bench.run_ours_again, False),
    "`mlops run` command, one after the other, warm": (Bench.run_ours_loop, False),
    "`mlops run` command, all twelve, `-j 4`, cold": (Bench.run_ours_at_once, True),
    "`mlops run` command, all twelve, `-j 4`, warm": (Bench.run_ours_at_once, False),
}
PAPERMILL, COLD, WARM = (list(WAYS)[index] for index in (0, -2, -1))


def write_notebook(folder: Path, number: int) -> Path:
    """Write one notebook of six cells, different from the others."""
    folder.mkdir(exist_ok=True)
    notebook = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}})
    tagged = {"tags": ["parameters"]}
    notebook.cells = [new_code_cell("alpha: float = 1.0  # strength", metadata=tagged, id="cell-0")]
    for index, cell in enumerate(CELLS, start=1):
        notebook.cells.append(new_code_cell(cell.replace("{number}", str(number)), id=f"cell-{index}"))
    path = folder / f"nb{number:02}.ipynb"
    nbformat.write(notebook, path)
    return path


def measure(n_rounds: int) -> tuple[dict[str, list[float]], list[float]]:
    """Return the seconds of each way in each round, and the machine's load before each round."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    loads = []
    with tempfile.TemporaryDirectory(prefix="b-") as folder:
        bench = Bench(Path(folder))
        try:
            for number in range(n_rounds):
                loads.append(os.getloadavg()[0])
                for name, (way, is_cold) in WAYS.items():
                    if is_cold:
                        bench.stop()
                    started = time.perf_counter()
                    own = way(bench)
                    seconds[name].append(own or time.perf_counter() - started)
                    print(f"round {number + 1}: {seconds[name][-1]:6.2f} s  {name}", file=sys.stderr)
        finally:
            bench.stop()
    return seconds, loads


def render(seconds: dict[str, list[float]], loads: list[float]) -> list[str]:
    """Return the report's lines."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        f"| {name} | {median:.1f} | {median / medians[COLD]:.1f} | {median / medians[WARM]:.1f} | "
        f"{', '.join(f'{value:.1f}' for value in seconds[name])} |"
        for name, median in medians.items()
    ]
    return [
        f"# {N_NOTEBOOKS} notebooks that import MLflow and scikit-learn ({len(CELLS) + 1} cells each)",
        "",
        f"{benchmark.TODAY}, {benchmark.describe_command('notebooks')}, {len(loads)} interleaved rounds.",
        f"{benchmark.describe_machine()}; load before each round {', '.join(f'{load:.1f}' for load in loads)}.",
        f"{benchmark.describe_versions(PACKAGES)}. Bytecode compiled, OMP_NUM_THREADS=1.",
        "",
        "**Command against command, what the README quotes: one `mlops run` of all is",
        f"{medians[PAPERMILL] / medians[COLD]:.1f} times as fast as the loop of `papermill` commands cold, "
        f"{medians[PAPERMILL] / medians[WARM]:.1f} times warm.**",
        "",
        "*× ours* is the time of a way over that of the last two ways, `mlops run` of all twelve, cold and warm.",
        "",
        "| way | median s | × ours cold | × ours warm | each round, s |",
        "|---|---:|---:|---:|---|",
        *rows,
        "",
        "Each way is a fresh process from start to exit; only *in a running process* leaves out start and imports.",
        "*cold* starts the server of warm kernels and does its imports; *warm* finds it running. Stock tools use plain",
        "kernels. papermill leaves an executed copy; nbval and nbmake leave nothing; ours leaves a tracked run with",
        "parameters, result, executed copy, report and what was read.",
    ]


def main() -> None:
    """Measure, write the report and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    benchmark.write_report("notebooks", render(*measure(1 if options.quick else options.rounds)))


if __name__ == "__main__":
    main()
