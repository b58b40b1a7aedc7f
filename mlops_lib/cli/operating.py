"""Commands that operate a model in production: operate, monitor, feedback, trace, replay, status."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlops_lib.cli.options import Answer, command, json_option, load_project, print_answer, refuse_both
from mlops_lib.cli.programs import progress_bar, stage_option

if TYPE_CHECKING:
    from mlops_lib.project import Project

MOMENTS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M"]
as_of_option = click.option("--as-of", type=click.DateTime(MOMENTS), help="What was known by then (UTC) counts.")


def _at(project: Project, as_of: datetime | None) -> Project:
    """Return the project with its clock at a moment."""
    return replace(project, now=as_of.replace(tzinfo=UTC)) if as_of else project


@command
@as_of_option
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
def operate(project: Project, as_of: datetime | None, dry_run: bool) -> Answer:
    """Do what is due: score what has come, judge it by its labels, do what the policy says. Exit 3 on alarms.

    Called again it goes on where it was stopped, and does nothing where nothing has changed; another one that is
    called meanwhile is refused.

    \b
    Example: mlops operate
    Example: mlops operate --as-of 2013-06-02 --dry-run
    """
    from mlops_lib.programs import operate

    with progress_bar("step", first=0) as progress:
        tick = operate.run_tick(_at(project, as_of), dry_run=dry_run, progress=progress)
    lines = [str(tick.report), *(f"note: {note}" for note in tick.notes)]
    is_fine = tick.report.passed or (dry_run and not tick.report.failures)
    return Answer({**asdict(tick), "report": tick.report.to_dict()}, lines, is_fine)


@command
@click.argument("period")
@stage_option
@click.option("--version", type=int, help="Measure this version instead of a stage's, also one that was replaced.")
@as_of_option
def monitor(project: Project, period: str, stage: str | None, version: int | None, as_of: datetime | None) -> Answer:
    """Compare a period with the training data, and its predictions with the labels that have come.

    Exit 3 on drift, on quality beyond the project's limits, and where predictions or labels are missing.

    Example: mlops monitor 2013-05
    """
    from mlops_lib.programs import operate

    refuse_both(stage, version)
    moment = as_of.replace(tzinfo=UTC) if as_of else None
    monitored = operate.monitor_period(project, period, stage if version is None else version, as_of=moment)
    reports = (monitored.drift, monitored.quality)
    guess = [f"{name} estimated from scores alone: {value}" for name, value in monitored.estimated.items()]
    return Answer([report.to_dict() for report in reports], [*map(str, reports), *guess], monitored.passed)


@command
@click.argument("labels", type=click.Path(path_type=Path))
def feedback(project: Project, labels: Path) -> Answer:
    """Take labels of rows that were predicted, by key or by prediction_id. Exit 3 for unknown and contradicting ones.

    The same labels again count once; a correction with a later labelled_at counts from then on.

    Example: mlops feedback labels-of-today.csv
    """
    from mlops_lib.programs import operate

    report = operate.add_labels(project, labels)
    return Answer(report.to_dict(), [str(report)], not report.failures)


@command
@click.argument("prediction_id")
def trace(project: Project, prediction_id: str) -> Answer:
    """Follow a prediction to its row, version, verdict, run, training data and commit; say which features moved it.

    Example: mlops trace flight-delays/1/112233
    """
    from mlops_lib.programs import operate

    found = operate.trace(project, prediction_id)
    return Answer(found.to_dict(), [str(found)])


@click.command()
@click.option("--from", "first", required=True, metavar="PERIOD", help="First period to operate.")
@click.option("--to", "last", required=True, metavar="PERIOD", help="Last one.")
@click.option(
    "--policy", "named", default="never,monthly,on-drift,project", show_default=True, metavar="A,B,…", help="Of these."
)
@json_option
def replay(first: str, last: str, named: str, as_json: bool) -> None:
    """Operate a past again under several policies: what would have been in production when, how good, at what effort.

    Example: mlops replay --from 2013-04 --to 2013-12 --policy never,monthly
    """
    from mlops_lib.programs import operate

    with progress_bar("tick") as progress:
        played = operate.replay(load_project(), first, last, named.split(","), progress=progress)
    print_answer(Answer(played.to_dict(), [str(played), f"everything is in {played.folder}"]), as_json)


@command
@click.option("--page", type=click.Path(path_type=Path), help="Write the page to this file too.")
def status(project: Project, page: Path | None) -> Answer:
    """Say in a few lines whether production is well, what is in it since when and why, and what is open. Exit 3 if not.

    Example: mlops status
    """
    from mlops_lib.programs import operate

    seen = operate.read_status(project, page=page)
    if page:
        operate.write_status(seen, page)
    return Answer(seen.to_dict(), [str(seen)], seen.outcome == "passed")
