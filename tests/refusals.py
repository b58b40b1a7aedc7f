"""What tests expect of an error: its class and which of the class's cases it is."""

from __future__ import annotations

import pytest

from mlops_lib.errors import MlopsError


def raises(error: type[MlopsError], case: str) -> pytest.RaisesExc[MlopsError]:
    """Return what passes where exactly this is raised."""
    return pytest.raises(error, check=lambda raised: raised.case == case)
