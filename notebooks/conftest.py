"""What stock `pytest --nbval notebooks` needs: store, actor and rules of `mlops check`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

SANITIZER = Path(__file__).with_name("sanitize.cfg")
NBVAL_TIMEOUT_S = 2000  # its default: 33 minutes, which a dead kernel takes to be noticed


def pytest_configure(config: Any) -> None:
    """Run the notebooks in file order against a fresh store; compare what can be reproduced."""
    option = config.option
    if not (getattr(option, "nbval", False) or getattr(option, "nbval_lax", False)):
        return
    from mlops_lib.programs.notebooks.check import CELL_TIMEOUT_S, scratch_environment  # noqa: PLC0415 - only for nbval

    os.environ.update(scratch_environment(Path(tempfile.mkdtemp(prefix="mlops-nbval-"))))
    option.nbval_sanitize_with = option.nbval_sanitize_with or str(SANITIZER)
    if option.nbval_cell_timeout == NBVAL_TIMEOUT_S:
        option.nbval_cell_timeout = CELL_TIMEOUT_S
