"""Two versions side by side: parameters, metrics on the same rows, contract, data, environment, code.

Metrics are not copied from two runs that saw different rows: both versions are loaded through the verified way and
score the same labelled periods, so that the difference has an interval of its own.

>>> print(comparison.compare_versions(project, 5, 8))  # doctest: +SKIP
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import yaml
from mlflow.tracking import MlflowClient

from mlops_lib import contracts, data, quality, registry, tracking
from mlops_lib.errors import GateError
from mlops_lib.gates.evidence import collect_evidence, read_contract
from mlops_lib.project import Project
from mlops_lib.registry import Release, Version
from mlops_lib.report import table_lines
from mlops_lib.tracking import store

SAME = "same"


@dataclass(frozen=True, repr=False)
class Comparison:
    """What differs between two versions.

    Parameters
    ----------
    first, second : Version
    tables : mapping of str to DataFrame
        ``metrics``, ``parameters``, ``contract``, ``data``, ``environment`` and ``code``; an empty one means that
        nothing differs, ``metrics`` is empty where no labelled period was named or found.
    n_rows : int
        Labelled rows that the metrics rest on.
    periods : tuple of str
    """

    first: Version
    second: Version
    tables: Mapping[str, pd.DataFrame]
    n_rows: int = 0
    periods: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What is compared."""
        return f"Versions {self.first.version} and {self.second.version} of '{self.first.name}'"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        tables = {name: json.loads(table.to_json(orient="records")) for name, table in self.tables.items()}
        head = {"name": self.first.name, "first": self.first.version, "second": self.second.version}
        return {**head, "periods": list(self.periods), "n_rows": self.n_rows, **tables}

    def __str__(self) -> str:
        """Return the tables for a terminal."""
        lines = [self.title]
        for heading, table, nothing in self._sections():
            cells = table_lines([[*table.columns], *table.to_numpy().tolist()])
            lines += ["", f"{heading}: {nothing}"] if table.empty else ["", heading, *(f"  {line}" for line in cells)]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the tables that JupyterLab shows."""
        parts = [f"<b>{html.escape(self.title)}</b>"]
        for heading, table, nothing in self._sections():
            shown = f"<p>{html.escape(nothing)}</p>" if table.empty else table.to_html(index=False, border=0)
            parts.append(f"<p><i>{html.escape(heading)}</i></p>{shown}")
        return "".join(parts)

    def _sections(self) -> Iterator[tuple[str, pd.DataFrame, str]]:
        """Yield heading, table and what is said where the table is empty."""
        measured = f"metrics on {', '.join(self.periods)}, {self.n_rows:,} rows, 95 % intervals"
        for name, table in self.tables.items():
            is_metrics = name == "metrics"
            heading = measured if is_metrics and self.periods else name
            yield heading, table, "no labelled period to score; name one" if is_metrics else SAME


def compare_versions(
    project: Project, first: int | str, second: int | str, *, periods: Sequence[str] | None = None
) -> Comparison:
    """Compare two versions in everything that made them and on the same rows.

    Parameters
    ----------
    first, second : int or str
        A number, or the stage that the version is in.
    periods : sequence of str, optional
        Labelled periods to score with both; by default those that the verdict on ``second``, else on ``first``, rests
        on, as far as they are still here.

    Raises
    ------
    GateError, NotFoundError, ModelFileError, TaskError
        Nothing was changed.
    """
    versions = registry.get_version(project, first), registry.get_version(project, second)
    if versions[0].version == versions[1].version:
        version = versions[0].version
        raise GateError("same_version", name=project.name, version=version, first=str(first), second=str(second))
    releases = [registry.load_model(project, version.version) for version in versions]
    lineages = [registry.read_lineage(project, version) for version in versions]
    chosen = tuple(periods) if periods is not None else _judged_periods(project, (versions[1], versions[0]))
    metrics, n_rows = _compare_metrics(project, releases, chosen)
    tables = {
        "metrics": metrics,
        "parameters": _differences(*map(_read_parameters, lineages)),
        "contract": _compare_contracts(*releases),
        "data": _differences(*(_shortened(_with_prefix(lineage, "input.")) for lineage in lineages)),
        "environment": _differences(*map(_read_environment, versions, lineages)),
        "code": _compare_code(project, *lineages),
    }
    return Comparison(versions[0], versions[1], tables, n_rows, chosen)


def _judged_periods(project: Project, versions: Sequence[Version]) -> tuple[str, ...]:
    """Return the periods whose arrivals a verdict rests on."""
    for version in versions:
        verdict = registry.load_verdict(project, version.version)
        if verdict is None:
            continue
        ready = {*project.periods()} & {*project.periods("labels")}
        found = [period for period in verdict.facts.get("rows", {}).get("periods", ()) if period in ready]
        if found:
            return tuple(found)
    return ()


def _compare_metrics(project: Project, releases: Sequence[Release], periods: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """Score the same rows with both; rows that break the second's contract are left out for both."""
    if not periods:
        return pd.DataFrame(), 0
    first, second = releases
    evidence = collect_evidence(project, second, first, data.read_labelled(project, periods))
    y_true, scores, others, task = evidence.y_true, evidence.candidate, evidence.champion, evidence.task
    assert others is not None
    named = [gate.clusters for gate in project.gates if getattr(gate, "clusters", None)]
    clusters = evidence.clusters(named[0] if named else None)  # rows that belong together for the gates do so here
    rows = []
    for metric in map(evidence.metric, (*task.metrics, *quality.list_metrics(project))):
        options: dict[str, Any] = {"metric": metric, "task": task, "clusters": clusters}
        alone = [quality.compute_interval(y_true, score, **options) for score in (others, scores)]
        paired = quality.compute_paired_interval(y_true, scores, others, **options)
        cells = {f"version {r.version}": str(i) for r, i in zip(releases, alone, strict=True)}
        rows.append({"metric": metric.name, **cells, "difference": str(paired), "better": _name_direction(metric)})
    return pd.DataFrame(rows), len(y_true)


def _name_direction(metric: quality.Metric) -> str:
    return {True: "greater", False: "lower", None: "near zero"}[metric.greater_is_better]


def _compare_contracts(first: Release, second: Release) -> pd.DataFrame:
    old, new = map(read_contract, (first, second))
    if old is None or new is None:
        return pd.DataFrame() if old is new else pd.DataFrame([{"column": "all", "what": "only one has a contract"}])
    report = contracts.compare_contracts(old, new)
    rows = [row for row in report.rows if row.name != "keys" or row.reason]  # it lists what differs, and the keys
    return pd.DataFrame([{"column": row.name, "second is": row.value, "what": row.reason} for row in rows])


def _read_environment(version: Version, lineage: Mapping[str, str]) -> dict[str, str]:
    """Return Python and the packages that the model's own files pin, and the fingerprint of the lock."""
    uri = MlflowClient().get_logged_model(version.model_id).artifact_location
    found = {"requirements.lock": lineage.get("lock", "").removeprefix("sha256:")[:12]}
    packages = store.read_artifact(uri, "requirements.txt").splitlines()
    found |= {name: number for name, _, number in (line.partition("==") for line in packages) if name}
    python = yaml.safe_load(store.read_artifact(uri, "python_env.yaml"))
    return {"python": str(python.get("python", "")), **found}


def _compare_code(project: Project, first: Mapping[str, str], second: Mapping[str, str]) -> pd.DataFrame:
    names = ("notebook", "notebook_source", "commit", "dirty")
    old, new = (_shortened({name: lineage.get(name, "") for name in names}) for lineage in (first, second))
    table = _differences(old, new)
    commits = [lineage.get("commit", "") for lineage in (first, second)]
    if all(commits) and commits[0] != commits[1]:
        changed = tracking.ask_git(project.root, "diff", "--stat=100", *commits).splitlines()
        rows = [{"what": "files", "first": "", "second": line.strip()} for line in changed]
        table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
    return table


def _differences(first: Mapping[str, str], second: Mapping[str, str]) -> pd.DataFrame:
    """Return one row for each name whose value differs; a name that only one has is empty in the other."""
    rows = [
        {"what": name, "first": first.get(name, ""), "second": second.get(name, "")}
        for name in {**first, **second}
        if first.get(name) != second.get(name)
    ]
    return pd.DataFrame(rows, columns=["what", "first", "second"])


def _read_parameters(lineage: Mapping[str, str]) -> dict[str, str]:
    return {"task": lineage.get("task", ""), **_with_prefix(lineage, "param.")}


def _with_prefix(lineage: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in lineage.items() if name.startswith(prefix)}


def _shortened(values: Mapping[str, str]) -> dict[str, str]:
    """Return fingerprints and commits as short as people quote them."""
    return {name: value.removeprefix("sha256:")[:12] if len(value) >= 40 else value for name, value in values.items()}
