"""Does production still look like training: each column against a stored profile, no training data needed.

Rows are counted into the profile's bins, batch by batch, so that memory does not grow with them. A column that cannot
be compared (missing, another type, no rows) is a failure with a reason, never a quiet zero.

>>> from mlops_lib import quality
>>> profile = quality.build_profile(pd.DataFrame({"month": [1, 2, 3] * 100}), columns=["month"])
>>> compute_drift(profile, pd.DataFrame({"month": [7] * 300})).loc["month", "largest_move"]
'above 3: 0 % -> 100 %'
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy  # its parts are loaded when they are first used: a command that looks at gates waits for none

from mlops_lib.errors import QualityError
from mlops_lib.quality.profiles import ColumnProfile, Floats, Profile, count_bins, is_number, name_bins, plain
from mlops_lib.report import Report, Row, Status

MIN_EXPECTED = 5  # rows of a bin in the smaller sample; fewer are taken together before chi-square is asked
_NUMBERS = ["psi", "p_value", "js", "ks", "wasserstein", "missing_share_reference", "missing_share"]
_NUMBERS += ["missing_p_value", "unseen_share"]


class DriftCounter:
    """Count rows into a profile's bins, any number of batches, in the memory of the bins.

    >>> from mlops_lib import quality
    >>> profile = quality.build_profile(pd.DataFrame({"month": [1, 2, 3] * 100}), columns=["month"])
    >>> counter = DriftCounter(profile)
    >>> for month in (1, 2, 3):
    ...     counter.add(pd.DataFrame({"month": [month] * 50}))
    >>> counter.measure().loc["month", "psi"].item()
    0.0
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.n_rows = 0
        self._counts = {name: np.zeros(len(column.shares) + 1) for name, column in profile.columns.items()}
        self._beyond = {name: np.zeros(2) for name in profile.columns}
        self._reasons: dict[str, str] = {}

    def __repr__(self) -> str:
        """Tell how much was counted."""
        return f"DriftCounter({len(self._counts)} columns, {self.n_rows:,} rows, {len(self._reasons)} not compared)"

    def add(self, frame: pd.DataFrame) -> None:
        """Count a batch of rows; columns without a profile are ignored.

        A column that one batch lacks, or holds as another type, is not compared at all: what was counted of it would be
        a part of the rows. One whose values are all missing is of any type.
        """
        self.n_rows += len(frame)
        for name, column in self.profile.columns.items():
            reason = self._reasons.get(name) or _explain_incomparable(column, name, frame)
            if reason:
                self._reasons[name] = reason
                continue
            counts, beyond = count_bins(column, frame[name])
            self._counts[name] += counts
            self._beyond[name] += beyond

    def measure(self) -> pd.DataFrame:
        """Return what :func:`compute_drift` does, of all rows counted so far."""
        rows = []
        for name, column in self.profile.columns.items():
            row: dict[str, object] = {"column": name, "missing_share_reference": column.missing_share}
            row |= {"n_rows": self.n_rows, "n_rows_reference": self.profile.n_rows}
            reason = self._reasons.get(name) or ("" if self.n_rows else "there are no rows")
            measured = {"largest_move": reason}
            rows.append(row | (measured if reason else self._measure(name, column)))
        columns = ["column", *_NUMBERS, "n_rows", "n_rows_reference", "largest_move"]
        drift = pd.DataFrame(rows, columns=columns).set_index("column")
        drift[_NUMBERS] = drift[_NUMBERS].astype(float)
        return drift.sort_values("psi", ascending=False, kind="stable", na_position="first")

    def _measure(self, name: str, column: ColumnProfile) -> dict[str, object]:
        n_rows, n_reference, counts = self.n_rows, self.profile.n_rows, self._counts[name]
        p, q = np.array([*column.shares, column.missing_share]), counts / n_rows
        floor = 0.5 / min(n_rows, n_reference)
        p_seen, q_seen = np.maximum(p, floor), np.maximum(q, floor)
        moved = max(range(len(p)), key=lambda i: (round(abs(q[i] - p[i]), 9), q[i] - p[i]))  # where the rows went
        expected = np.rint(p * n_reference)
        measured: dict[str, object] = {
            "psi": float((q_seen - p_seen) @ np.log(q_seen / p_seen)),
            "p_value": compare_counts(counts, expected),
            "js": _jensen_shannon(p, q),
            "missing_share": q[-1],
            "missing_p_value": compare_shares(counts[-1], n_rows, expected[-1], n_reference),
            "unseen_share": q[:-1][p[:-1] == 0].sum(),
            "largest_move": f"{name_bins(column)[moved]}: {_percent(p[moved])} -> {_percent(q[moved])}",
        }
        if column.kind == "numeric" and p[:-1].any() and q[:-1].any():
            below, above = self._beyond[name] / counts[:-1].sum()
            measured |= _compare_numbers(np.array(column.bins, dtype=float), p[:-1], q[:-1], below + above)
        return measured


def compute_drift(profile: Profile, frame: pd.DataFrame) -> pd.DataFrame:
    """Measure how far each column has moved from its profile, furthest first.

    The population stability index is ``sum((q - p) * ln(q / p))`` over the bins, missing values being one of them. A
    share is taken as at least half a row of the smaller sample: what that sample cannot resolve does not count.

    Parameters
    ----------
    profile : Profile
    frame : DataFrame
        Current rows; columns without a profile are ignored. For more rows than fit, see :class:`DriftCounter`.

    Returns
    -------
    DataFrame
        Indexed by column. How far:

        - ``psi``;
        - ``js``, the Jensen-Shannon distance to base 2, from 0 to 1, over the same bins (Lin 1991, IEEE Trans. Inf.
          Theory 37(1); the root of the divergence);
        - of numbers, without the missing ones, ``ks``, the largest difference of the two distribution functions at the
          profile's edges: a lower bound of the Kolmogorov-Smirnov statistic;
        - ``wasserstein``, the 1-Wasserstein distance of numbers taken as evenly spread within each bin, divided by the
          reference's interdecile range (90 % quantile less 10 % quantile); what lies beyond the outermost edges counts
          with its exact distance, infinite values as if they lay at the edge. NaN where that range is nothing.

        Whether chance explains it: ``p_value`` of :func:`compare_counts`, of all bins, and ``missing_p_value`` of
        :func:`compare_shares`. Besides ``missing_share_reference``; ``missing_share``; ``unseen_share``, the rows with
        values outside everything that the reference held; ``n_rows`` and ``n_rows_reference``; ``largest_move`` in
        words. A column that cannot be compared has a psi of NaN, comes first, and says why in ``largest_move``.
    """
    counter = DriftCounter(profile)
    counter.add(frame)
    return counter.measure()


def _explain_incomparable(column: ColumnProfile, name: str, frame: pd.DataFrame) -> str:
    if name not in frame:
        return "the column is not in the table"
    if column.kind == "numeric" and not is_number(plain(frame[name]).dtype) and not frame[name].isna().all():
        return f"it holds {frame[name].dtype} where numbers were profiled"
    return ""


def _jensen_shannon(p: Floats, q: Floats) -> float:
    middle = (p + q) / 2
    bits = sum(float(x[x > 0] @ np.log2(x[x > 0] / middle[x > 0])) for x in (p, q)) / 2
    return float(np.sqrt(min(max(bits, 0.0), 1.0)))


@np.errstate(over="ignore", invalid="ignore")
def _compare_numbers(edges: Floats, p: Floats, q: Floats, beyond: float) -> dict[str, object]:
    """Return both distances of numbers from their shares by bin, and how far a row lies beyond the edges on average."""
    if not len(edges):
        return {}
    before = np.cumsum(p / p.sum())[:-1]
    apart = np.cumsum(q / q.sum())[:-1] - before
    low, high = np.interp([0.1, 0.9], before, edges)
    left, right = apart[:-1], apart[1:]
    # The area of a straight line between two edges; of one that crosses zero, the area of two triangles.
    size = np.abs(left) + np.abs(right)
    crossing = np.divide(left**2 + right**2, size, out=np.zeros_like(size), where=size > 0)
    area = np.diff(edges) @ np.where(left * right < 0, crossing, size) / 2 + beyond
    spread = high - low
    is_spread = spread > 1e-9 * np.abs(edges).max()
    return {"ks": np.abs(apart).max(), "wasserstein": area / spread if is_spread else np.nan}


# --- what chance does ---------------------------------------------------------------------------------------------


def compare_counts(counts: Floats, reference: Floats) -> float:
    """Return the p-value of "both samples were drawn from the same shares": small when chance does not explain them.

    The index has a chi-square distribution only where every bin is well filled (Yurdakul & Naranjo 2020, Journal of
    Risk Model Validation 14(4)): with five to ten rows a bin its far tail, which decides about alarms, is up to 17
    times too heavy. So neighbouring bins of fewer than ``MIN_EXPECTED`` rows are taken together, the likelihood ratio
    of the groups is asked instead of the index (its tail is right to a factor of two), and what fills no group is held
    against all other rows exactly. The smaller p-value of the two is doubled, which also makes up for that factor.

    Parameters
    ----------
    counts, reference : ndarray of shape (n_bins,)
        Rows of each sample in each bin, whole numbers.
    """
    n_rows, n_reference = counts.sum(), reference.sum()
    expected = (counts + reference) * min(n_rows, n_reference) / (n_rows + n_reference)
    groups, rest = [], np.zeros(2)
    filled = 0.0
    for pair, rows in zip(np.column_stack([counts, reference]), expected, strict=True):
        if rows >= MIN_EXPECTED:
            groups.append(pair)
            continue
        rest, filled = rest + pair, filled + rows
        if filled >= MIN_EXPECTED:
            groups.append(rest)
            rest, filled = np.zeros(2), 0.0
    p_groups, p_rest = 1.0, compare_shares(rest[0], n_rows, rest[1], n_reference)
    if len(groups) > 1:
        table = np.array(groups)
        even = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
        ratio = 2 * scipy.special.xlogy(table, table / even).sum()
        p_groups = float(scipy.special.chdtrc(len(groups) - 1, max(ratio, 0.0)))
    return min(1.0, 2 * min(p_groups, p_rest))


def compare_shares(n_hits: float, n_rows: float, n_hits_reference: float, n_reference: float) -> float:
    """Return the p-value of "both samples were drawn with the same share of hits", such as of missing values.

    Fisher's exact test with the smaller tail doubled: of few rows a normal approximation is wrong by orders of
    magnitude where alarms are decided.
    """
    n_all, hits = n_rows + n_reference, n_hits + n_hits_reference
    mean = hits * n_rows / n_all
    error = np.sqrt(mean * (n_all - hits) / n_all * n_reference / n_all)
    reach = 100 + 10 * error  # beyond this many further counts nothing is left of the tail
    if n_hits >= mean:
        tail = np.arange(n_hits, min(n_rows, hits, n_hits + reach) + 1)
    else:
        tail = np.arange(max(0.0, hits - n_reference, np.ceil(n_hits - reach)), n_hits + 1)

    def log_choose(n: float, k: Any) -> Any:
        return scipy.special.gammaln(n + 1) - scipy.special.gammaln(k + 1) - scipy.special.gammaln(n - k + 1)

    logs = log_choose(hits, tail) + log_choose(n_all - hits, n_rows - tail) - log_choose(n_all, n_rows)
    return min(1.0, 2 * float(np.exp(logs).sum()))


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def check_drift(
    drift: pd.DataFrame,
    *,
    max_psi: float = 0.25,
    max_missing_change: float = 0.05,
    alarms_a_year: float = 1.0,
    periods_a_year: int = 365,
) -> Report:
    """Check that no column has moved further than allowed and further than chance explains.

    A column has failed where its index or its missing share is beyond the limit *and* the p-value of that is below
    :func:`alarm_level`. Without drift the expected number of failures a year, over all columns and periods, is then
    ``alarms_a_year`` at most, however small the periods: each of ``periods_a_year`` times two tests a column has that
    level (Bonferroni), and expectations add up whatever depends on what. It is less where limits lie above the noise.

    Parameters
    ----------
    drift : DataFrame
        What :func:`compute_drift` measured: one family of tests.
    max_psi : float
        0.1 is usually read as a slight and 0.25 as a large shift (Siddiqi 2006, Credit Risk Scorecards).
    max_missing_change : float in [0, 1]
        Largest difference between the missing shares.
    alarms_a_year : float > 0
        False alarms that are accepted.
    periods_a_year : int
        How often this is checked: 365 for days, 12 for months.

    Returns
    -------
    Report
        One row a column. A missing column, another type or an empty table has failed.

    Raises
    ------
    QualityError
        For numbers of alarms or periods that are not above zero.
    """
    level = alarm_level(drift, alarms_a_year=alarms_a_year, periods_a_year=periods_a_year)
    rows = [_check_column(str(name), each, max_psi, max_missing_change, level) for name, each in drift.iterrows()]
    facts: dict[str, object] = {name: int(drift[name].max()) for name in ("n_rows", "n_rows_reference") if rows}
    return Report("Drift", tuple(rows), facts | {"alarm_level": level})


def alarm_level(drift: pd.DataFrame, *, alarms_a_year: float = 1.0, periods_a_year: int = 365) -> float:
    """Return the p-value below which chance is ruled out; parameters and errors are those of :func:`check_drift`."""
    if not (alarms_a_year > 0 and periods_a_year > 0):
        raise QualityError("alarms", alarms_a_year=alarms_a_year, periods_a_year=periods_a_year)
    return alarms_a_year / (periods_a_year * 2 * max(len(drift), 1))


def _check_column(name: str, drift: pd.Series[Any], max_psi: float, max_missing: float, level: float) -> Row:
    if np.isnan(drift["psi"]):
        return Row(name, "not compared", f"psi <= {max_psi:g}", "failed", str(drift["largest_move"]))
    before, now = drift["missing_share_reference"], drift["missing_share"]
    tests = (
        (drift["psi"] > max_psi, drift["p_value"], str(drift["largest_move"])),
        (abs(now - before) > max_missing, drift["missing_p_value"], f"missing: {_percent(before)} -> {_percent(now)}"),
    )
    failures = dict.fromkeys(move for is_beyond, p_value, move in tests if is_beyond and p_value < level)
    chance = min((p_value for is_beyond, p_value, _ in tests if is_beyond), default=None)
    status: Status = "failed" if failures else "passed"
    reason = "; ".join(failures)
    if chance is not None and not failures:
        reason = f"chance explains it: p = {chance:.2g}, an alarm needs less than {level:.2g}"
    limit = f"psi <= {max_psi:g}, missing ± {_percent(max_missing)}"
    return Row(name, float(drift["psi"]), limit, status, reason)
