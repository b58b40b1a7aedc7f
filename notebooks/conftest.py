"""What `pytest --nbval notebooks` needs: a scratch store, one actor, rules for times and ids."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def pytest_configure(config: Any) -> None:
    """Run the notebooks in file order against a fresh store; compare what can be reproduced."""
    if not getattr(config.option, "nbval", False):
        return
    scratch = tempfile.mkdtemp(prefix="mlops-nbval-")
    os.environ.update(scratch_environment(Path(scratch)))
    config.option.nbval_sanitize_with = str(HERE / "sanitize.cfg")
    config.option.nbval_cell_timeout = 120  # nbval's own default waits 33 minutes for a dead kernel


def scratch_environment(folder: Path) -> dict[str, str]:
    """Return the variables under which the committed outputs were made."""
    return {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLOPS_OUTPUTS": str(folder),
        "MLOPS_ACTOR": "data-scientist",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "TZ": "UTC",
    }
