"""How often a race is run or a process killed: a few times in ``ci/test``, many times in ``ci/soak``.

``pytest --rounds many`` sets ``MLOPS_TEST_ROUNDS``, which the processes that tests start inherit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

VARIABLE = "MLOPS_TEST_ROUNDS"
T = TypeVar("T")
soak = pytest.mark.soak


def rounds(few: T, many: T) -> T:
    """Return what this run is to do: a number of rounds, or the moments of its kills."""
    return many if os.environ.get(VARIABLE) == "many" else few


def wait_until(condition: Callable[[], object], *, every_s: float = 0.05) -> None:
    """Wait for what must happen; how long it may take is the limit of the test itself (``timeout`` of pytest)."""
    while not condition():
        time.sleep(every_s)
