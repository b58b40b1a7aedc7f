"""A model whose own parser is native code is first loaded by a child process, which may crash, hang or fill its memory.

LightGBM, XGBoost and CatBoost read their trees in C++ that trusts them. Whatever a doctored file makes of that happens
in a process without anything to lose, on the stored warm-up rows too; only a file that has come through is loaded here.
It is no proof: other rows may lead where these did not.

>>> raise_for_rehearsal(folder / "model.skops", needed, warmup, method, name="Version 7")  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlops_lib.errors import ModelFileError

# By package: its types that may be in a model file. What making them does with their state stands in models/types.py.
BOOSTERS: Mapping[str, tuple[str, ...]] = {
    "lightgbm": ("lightgbm.basic.Booster", "lightgbm.sklearn.LGBMClassifier", "lightgbm.sklearn.LGBMRegressor"),
    "xgboost": ("xgboost.core.Booster", "xgboost.sklearn.XGBClassifier", "xgboost.sklearn.XGBRegressor"),
    "catboost": ("catboost.core.CatBoostClassifier", "catboost.core.CatBoostRegressor"),
}
MAX_BYTES, MAX_S = 2**32, 120  # of address space beyond the file's own, of the whole rehearsal
_CODE = """
import json, sys
asked = json.load(sys.stdin)
import numpy, pandas, skops.io
for package in asked["packages"]:
    __import__(package)
try:
    import psutil, resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + asked["max_bytes"],) * 2)
except (ImportError, ValueError):
    pass  # a system without such limits
model = skops.io.load(asked["path"], trusted=asked["types"])
warmup = asked["warmup"]
if warmup:
    rows = pandas.DataFrame(warmup["rows"], columns=warmup["columns"])
    rows = rows.astype(dict(zip(warmup["columns"], warmup["dtypes"])))
    getattr(model, asked["method"])(rows)
"""


def find_packages(types: Iterable[str]) -> tuple[str, ...]:
    """Return the packages with native parsers that types belong to.

    >>> find_packages(["lightgbm.basic.Booster", "numpy.dtype"])
    ('lightgbm',)
    """
    return tuple(sorted({kind.partition(".")[0] for kind in types} & BOOSTERS.keys()))


def raise_for_rehearsal(path: Path, types: Iterable[str], warmup: Mapping[str, Any], method: str, *, name: str) -> None:
    """Load a skops file and score its warm-up rows in a child process with limits of time and memory.

    Parameters
    ----------
    types : iterable of str
        Those that the file names; without native ones among them nothing is done.
    warmup : mapping
        As stored beside the model; empty where there is none.
    method : str
        Of the model, that scores rows.

    Raises
    ------
    ModelFileError
        With what became of the child. Nothing was deserialized in this process.
    """
    types = sorted(types)
    packages = find_packages(types)
    for package in packages:
        if importlib.util.find_spec(package) is None:
            reason = f"needs the package {package}: pip install 'mlops-lib[boosters]'"
            raise ModelFileError("unread", model=name, file=path.name, reason=reason)
    if not packages:
        return
    key = f"{hashlib.sha256(path.read_bytes()).hexdigest()} {json.dumps(warmup, sort_keys=True)} {method}"
    if key in _passed:
        return
    asked: dict[str, Any] = {"path": str(path), "types": types, "packages": packages, "warmup": warmup}
    asked |= {"method": method, "max_bytes": MAX_BYTES + 8 * path.stat().st_size}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CODE],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=MAX_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        reason = f"did not load in {MAX_S} s in a process of its own"
        raise ModelFileError("discarded", model=name, file=path.name, reason=reason) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1][:200]
        how = f"by {signal.Signals(-done.returncode).name}" if done.returncode < 0 else f"with {last}"
        reason = f"ended the process that tried it {how}"
        raise ModelFileError("discarded", model=name, file=path.name, reason=reason)
    _passed.add(key)


_passed: set[str] = set()  # files that have come through in this process
