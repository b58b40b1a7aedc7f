"""Commands about versions and stages: models, show, compare, contract, every move, and the history of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from mlops_lib.cli.options import Answer, command, table_of
from mlops_lib.errors import NotFoundError
from mlops_lib.report import table_lines

if TYPE_CHECKING:
    from mlops_lib.gates import Comparison
    from mlops_lib.project import Project
    from mlops_lib.registry import Entry

reason_option = click.option("--reason", required=True, help="Why; written in the history.")


@command
def models(project: Project) -> Answer:
    """List every version with its stages and metrics, newest first.

    Example: mlops models
    """
    from mlops_lib import registry

    versions = registry.list_versions(project)
    names = sorted({name for version in versions for name in version.metrics})
    rows = [
        [v.version, ", ".join(v.stages), *(v.metrics.get(n) for n in names), v.created_at, v.description]
        for v in versions
    ]
    header = ["version", "stages", *names, "registered", "description"]
    return Answer([asdict(v) for v in versions], table_of(header, rows))


@command
@click.argument("version")
def show(project: Project, version: str) -> Answer:
    """Show a version: where it came from, what it was trained on, what it passed.

    Example: mlops show prod
    """
    from mlops_lib import registry

    shown = registry.get_version(project, version)
    lineage = registry.read_lineage(project, shown)
    verdict, n_verdicts = registry.load_verdict(project, shown.version), registry.count_verdicts(project, shown.version)
    facts = {
        "version": f"{shown.version} of '{shown.name}', stages: {', '.join(shown.stages) or 'none'}",
        "registered": f"{shown.created_at}  {shown.description}",
        "digest": shown.digest,
        **shown.metrics,
        **lineage,
        "verdicts": n_verdicts,
    }
    lines = [*table_lines(facts.items()), "", str(verdict) if verdict else "no verdict on it yet: run 03_validate"]
    return Answer({**asdict(shown), "lineage": lineage, "verdict": verdict.to_dict() if verdict else None}, lines)


@command
@click.argument("first")
@click.argument("second")
@click.option("--period", "periods", multiple=True, help="Labelled period to score with both; may be repeated.")
def compare(project: Project, first: str, second: str, periods: tuple[str, ...]) -> Comparison:
    """Compare two versions: metrics on the same rows, parameters, contract, data, environment, code.

    Example: mlops compare prod staging
    """
    from mlops_lib import gates

    return gates.compare_versions(project, first, second, periods=periods or None)


@command
@click.argument("version")
@click.argument("other", required=False)
def contract(project: Project, version: str, other: str | None) -> Answer:
    """Show what rows a version takes; with OTHER, whether tables made for VERSION can feed it. Exit 3 on breaking.

    Example: mlops contract prod 7
    """
    from mlops_lib import contracts, registry

    def read(which: str) -> contracts.Contract:
        release = registry.load_model(project, which)
        if not release.files.contract:
            raise NotFoundError("contract", name=release.name, version=release.version)
        return contracts.Contract.from_dict(release.files.contract)

    if other is None:
        contract = read(version)
        return Answer({**contract.to_dict(), "digest": contract.digest}, [str(contract)])
    report = contracts.compare_contracts(read(version), read(other))
    lines = [f"{other} against {version}: {report.facts['compatibility']}", str(report)]
    return Answer(report.to_dict(), lines, report.passed)


# --- moves -------------------------------------------------------------------------------------------------------


def move(function: Callable[[], None]) -> click.Command:
    """Make a command that calls the function of the same name and prints the entry that was written.

    A version is its number, or a stage that has it.
    """

    @functools.wraps(function)
    def call(project: Project, **options: Any) -> Any:
        from mlops_lib import gates, registry

        for name in {"version", "to"} & {name for name, value in options.items() if value is not None}:
            options[name] = registry.resolve(project, options[name])
        wing = gates if function.__name__ == "promote" else registry
        return getattr(wing, function.__name__)(project, **options)

    return command(call)


@move
@click.argument("version")
@click.argument("stage")
@click.option("--reason", default="", help="Why; written in the history.")
@click.option("--force", is_flag=True, help="Move although gates failed; takes a reason, stays in the history.")
def promote() -> None:
    """Move a version to the next stage, on the verdict that 03_validate logged for it.

    Example: mlops promote 7 staging --reason "best of four on April"
    """


@move
@click.argument("stage")
@click.option("--to", help="Version to go back to; default the one before.")
@reason_option
def rollback() -> None:
    """Move a stage back to a version that it had, verified and loaded first.

    Example: mlops rollback prod --reason "complaints from EWR"
    """


@move
@click.argument("version")
@click.argument("stage")
@reason_option
def approve() -> None:
    """Agree, as a second person, that a version is promoted to a stage that needs one.

    Example: mlops approve 7 prod --reason "read the report of April"
    """


@move
@click.argument("stage")
@reason_option
def freeze() -> None:
    """Keep a stage as it is: no promotion, no force, no rollback until it is unfrozen.

    Example: mlops freeze prod --reason "holiday traffic"
    """


@move
@click.argument("stage")
@reason_option
def unfreeze() -> None:
    """Let a frozen stage move again.

    Example: mlops unfreeze prod --reason "holidays are over"
    """


@command
@click.argument("version")
@reason_option
def delete(project: Project, version: str, reason: str) -> Entry:
    """Delete a version that no stage has and no rollback could need; its history stays.

    Example: mlops delete 3 --reason "trained on the wrong month"
    """
    from mlops_lib import registry

    return registry.delete_version(project, registry.resolve(project, version), reason=reason)


# --- looking back ------------------------------------------------------------------------------------------------


def _read_time(_: click.Context, __: click.Parameter, text: str | None) -> datetime | None:
    """Return the time that --at names."""
    try:
        return datetime.fromisoformat(text) if text is not None else None
    except ValueError:
        raise click.BadParameter(f"'{text}' is no time such as 2026-11-01T12:00Z", param_hint="--at") from None


@command
@click.argument("stage", required=False)
@click.option("--at", callback=_read_time, help="Show what each stage had then instead, such as 2026-11-01T12:00Z.")
def history(project: Project, stage: str | None, at: datetime | None) -> Answer:
    """Tell who moved what, when, why and on which evidence; forced moves are red. Or what every stage had at a time.

    Example: mlops history prod
    """
    from mlops_lib import registry

    if at is None:
        entries = registry.history(project, stage)
        header = ["#", "when", "who", "move", "stage", "version", "from", "evidence", "why"]
        rows: list[list[object]] = [
            [
                e.label,
                e.at[:19],
                e.actor,
                e.action,
                e.stage,
                e.version or "",
                e.from_version,
                e.verdict[:12],
                e.reason,
            ]
            for e in entries
        ]
        forced = [entry.action == "force" for entry in entries]
        value: Any = [asdict(entry) for entry in entries]
    else:
        if stage is not None:
            project.raise_for_stage(stage)
        standing = {name: entry for name, entry in registry.as_of(project, at).items() if stage in (None, name)}
        header = ["stage", "version", "since", "who", "move", "why"]
        rows = [
            [name, e.version, e.at[:19], e.actor, e.action, e.reason] if e else [name, "", "", "", "", "empty"]
            for name, e in standing.items()
        ]
        forced = [entry is not None and entry.action == "force" for entry in standing.values()]
        stages = {name: asdict(entry) if entry else None for name, entry in standing.items()}
        value = {"at": at.isoformat(), "stages": stages}
    head, *lines = table_of(header, rows)
    reddened = [click.style(line, fg="red") if red else line for line, red in zip(lines, forced, strict=True)]
    return Answer(value, [head, *reddened])
