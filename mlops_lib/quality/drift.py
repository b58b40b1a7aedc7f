"""Does production still look like training: each column against a stored profile, no training data needed.

A column that cannot be compared (missing, another type, no rows) is a failure with a reason, never a quiet zero.

>>> import pandas as pd
>>> profile = build_profile(pd.DataFrame({"month": [1, 2, 3] * 100}), columns=["month"])
>>> compute_drift(profile, pd.DataFrame({"month": [7] * 300})).loc["month", "largest_move"]
'above 3: 0 % -> 100 %'
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy  # its parts are loaded when they are first used: a command that looks at gates waits for none

from mlops_lib.quality.profiles import ColumnProfile, Profile, count_bins, is_number, name_bins, plain
from mlops_lib.report import Report, Row, Status

FALSE_ALARM_RATE = 0.001  # per column and check: with 15 columns a day, one false alarm in about two months


def compute_drift(profile: Profile, frame: pd.DataFrame) -> pd.DataFrame:
    """Measure how far each column has moved from its profile, furthest first.

    The population stability index is ``sum((q - p) * ln(q / p))`` over the bins, missing values being one of them. A
    share is taken as at least half a row of the smaller sample: what that sample cannot resolve does not count.

    Parameters
    ----------
    profile : Profile
    frame : DataFrame
        Current rows; columns without a profile are ignored.

    Returns
    -------
    DataFrame
        Indexed by column: ``psi``; ``psi_chance``, what chance alone exceeds once in 1,000 times without drift, which
        is ``(1/n + 1/m)`` times a chi-square quantile of one degree less than there are bins (Yurdakul & Naranjo 2020,
        Journal of Risk Model Validation 14(4)); ``missing_share_reference``; ``missing_share``; ``unseen_share``, the
        rows with values outside everything that the reference held; ``n_rows`` and ``n_rows_reference``;
        ``largest_move`` in words. A column that cannot be compared has a psi of NaN, comes first, and says why in
        ``largest_move``.
    """
    rows = []
    for name, column in profile.columns.items():
        row: dict[str, object] = {"column": name, "missing_share_reference": column.missing_share}
        row |= {"n_rows": len(frame), "n_rows_reference": profile.n_rows}
        reason = _explain_incomparable(column, name, frame)
        row |= {"largest_move": reason} if reason else _measure_drift(column, frame[name], profile.n_rows)
        rows.append(row)
    numbers = ["psi", "psi_chance", "missing_share_reference", "missing_share", "unseen_share"]
    columns = ["column", *numbers, "n_rows", "n_rows_reference", "largest_move"]
    drift = pd.DataFrame(rows, columns=columns).set_index("column")
    drift[numbers] = drift[numbers].astype(float)
    return drift.sort_values("psi", ascending=False, kind="stable", na_position="first")


def _explain_incomparable(column: ColumnProfile, name: str, frame: pd.DataFrame) -> str:
    if name not in frame:
        return "the column is not in the table"
    if frame.empty:
        return "there are no rows"
    if column.kind == "numeric" and not is_number(plain(frame[name]).dtype) and not frame[name].isna().all():
        return f"it holds {frame[name].dtype} where numbers were profiled"
    return ""


def _measure_drift(column: ColumnProfile, series: pd.Series[Any], n_reference: int) -> dict[str, object]:
    n_rows = len(series)
    p = np.array([*column.shares, column.missing_share])
    q = count_bins(column, series) / n_rows
    floor = 0.5 / min(n_rows, n_reference)
    p_seen, q_seen = np.maximum(p, floor), np.maximum(q, floor)
    n_bins = np.count_nonzero(p + q)
    chance = scipy.stats.chi2.ppf(1 - FALSE_ALARM_RATE, n_bins - 1) if n_bins > 1 else 0.0
    moved = max(range(len(p)), key=lambda i: (round(abs(q[i] - p[i]), 9), q[i] - p[i]))  # of two, where the rows went
    return {
        "psi": float((q_seen - p_seen) @ np.log(q_seen / p_seen)),
        "psi_chance": (1 / n_rows + 1 / n_reference) * chance,
        "missing_share": q[-1],
        "unseen_share": q[:-1][p[:-1] == 0].sum(),
        "largest_move": f"{name_bins(column)[moved]}: {_percent(p[moved])} -> {_percent(q[moved])}",
    }


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def check_drift(drift: pd.DataFrame, *, max_psi: float = 0.25, max_missing_change: float = 0.05) -> Report:
    """Check that no column has moved further than allowed and further than chance explains.

    Both limits are raised to what chance alone reaches once in 1,000 times on so few rows (``psi_chance``; two
    proportions for the missing share), so that small tables raise no false alarms. The
    approximation wants a reference of about a thousand rows or more.

    Parameters
    ----------
    drift : DataFrame
        What :func:`compute_drift` measured.
    max_psi : float
        0.1 is usually read as a slight and 0.25 as a large shift (Siddiqi 2006, Credit Risk Scorecards).
    max_missing_change : float in [0, 1]
        Largest difference between the missing shares.

    Returns
    -------
    Report
        One row a column. A missing column, another type or an empty table has failed.
    """
    rows = [_check_column(str(name), each, max_psi, max_missing_change) for name, each in drift.iterrows()]
    facts = {name: int(drift[name].max()) for name in ("n_rows", "n_rows_reference") if rows}
    return Report("Drift", tuple(rows), facts)


def _check_column(name: str, drift: pd.Series[Any], max_psi: float, max_missing: float) -> Row:
    if np.isnan(drift["psi"]):
        return Row(name, "not compared", f"psi <= {max_psi:g}", "failed", str(drift["largest_move"]))
    n_rows, n_reference = drift["n_rows"], drift["n_rows_reference"]
    before, now = drift["missing_share_reference"], drift["missing_share"]
    pooled = (before * n_reference + now * n_rows) / (n_reference + n_rows)
    noise = scipy.stats.norm.isf(FALSE_ALARM_RATE / 2) * np.sqrt(pooled * (1 - pooled) * (1 / n_rows + 1 / n_reference))
    psi_limit, missing_limit = max(max_psi, drift["psi_chance"]), max(max_missing, noise)
    failures = []
    if drift["psi"] > psi_limit:
        failures.append(str(drift["largest_move"]))
    if abs(now - before) > missing_limit:
        failures.append(f"missing: {_percent(before)} -> {_percent(now)}")
    limit = f"psi <= {psi_limit:.3g}, missing ± {_percent(missing_limit)}"
    status: Status = "failed" if failures else "passed"
    return Row(name, float(drift["psi"]), limit, status, "; ".join(dict.fromkeys(failures)))
