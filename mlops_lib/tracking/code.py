"""The code of a run: commit, whether the tree was dirty and how, notebook, lock."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

from mlflow.tracking import MlflowClient

from mlops_lib import data
from mlops_lib.project import Project
from mlops_lib.redaction import redact


def describe_code(project: Project) -> dict[str, str]:
    """Return the tags that say which code ran: commit, dirty or not, notebook and its hash, lock hash, actor."""
    tags = {"mlops.actor": project.actor, "mlflow.user": project.actor}
    commit = ask_git(project.root, "rev-parse", "HEAD")
    if commit:
        dirty = bool(ask_git(project.root, "status", "--porcelain"))
        tags |= {"mlflow.source.git.commit": commit, "mlops.commit": commit, "mlops.dirty": str(dirty).lower()}
    lock = project.root / "requirements.lock"
    if lock.is_file():
        tags["mlops.lock"] = data.fingerprint_file(lock)
    notebook = find_notebook(project)
    if notebook:
        tags |= {
            "mlops.notebook": _relative(notebook, project.root),
            "mlops.notebook_source": notebook_source(notebook),
        }
        tags |= {"mlflow.source.name": tags["mlops.notebook"], "mlflow.source.type": "NOTEBOOK"}
    return tags


def find_notebook(project: Project) -> Path | None:
    """Return the notebook that this process executes, where that is known and the file exists."""
    if not project.notebook:
        return None
    folders = (Path.cwd(), project.root, project.root / project.notebooks)
    found = (folder / project.notebook for folder in folders)
    by_name = (folder / Path(project.notebook).name for folder in folders)
    return next((path for path in (*found, *by_name) if path.is_file() and path.suffix == ".ipynb"), None)


def notebook_source(notebook: Path) -> str:
    """Return the SHA-256 of a notebook's code cells in order: text, outputs and counts do not matter."""
    raw = json.loads(notebook.read_text(encoding="utf-8"))
    cells = raw.get("cells") or [cell for sheet in raw.get("worksheets", ()) for cell in sheet["cells"]]  # before 4
    code = ["".join(cell.get("source", cell.get("input", ""))) for cell in cells if cell["cell_type"] == "code"]
    return f"sha256:{hashlib.sha256(json.dumps(code).encode()).hexdigest()}"


def log_difference(project: Project, client: MlflowClient, run_id: str) -> None:
    """Log what the working tree has beyond its commit, as ``code/uncommitted.diff``, if it has anything."""
    changed = ask_git(project.root, "status", "--porcelain")
    if changed:
        text = f"{changed}\n\n{ask_git(project.root, 'diff', '--no-ext-diff', '--no-color', 'HEAD')}\n"
        client.log_text(run_id, redact(text, project.secrets), "code/uncommitted.diff")


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def ask_git(root: Path, *arguments: str) -> str:
    """Return what git prints about the repository at ``root``, or nothing where it has no answer."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
