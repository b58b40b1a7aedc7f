"""Commands about predictions: score, serve, monitor."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from mlops_lib.cli.options import Answer, command, load_project, progress_bar, spark_option, stage_option

if TYPE_CHECKING:
    from mlops_lib.project import Project


@command
@click.argument("input_path", metavar="INPUT")
@click.argument("output_path", metavar="OUTPUT")
@click.option("--stage", "stages", multiple=True, help="Stage whose version scores; default prod. May be repeated.")
@click.option("--version", "versions", multiple=True, type=int, help="Score with this version. May be repeated.")
@click.option("--rows", type=click.IntRange(min=1), help="Score only the first so many rows: a smoke test.")
@spark_option
def score(
    project: Project,
    input_path: str,
    output_path: str,
    stages: tuple[str, ...],
    versions: tuple[int, ...],
    rows: int | None,
    master: str | None,
) -> Answer:
    """Score a table; rows that break the contract are set aside with their reasons.

    INPUT is a Parquet or CSV file, a folder of Parquet files, or URL::TABLE or URL::SELECT of a database. OUTPUT is a
    Parquet file or URL::TABLE; with several versions, {version} in its name stands for each one's number.

    \b
    Example: mlops score data/arrivals/2013-05.parquet scored.parquet --stage prod
    Example: mlops score data/arrivals/2013-05.parquet "scored-{version}.parquet" --stage prod --stage dev
    """
    import os

    # Read when pyarrow is imported. Its own allocator keeps some 40 MiB of what a batch has freed, and is no faster.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    import skops.io  # noqa: F401 - before MLflow: it looks for names in every module that is there, for half a second

    from mlops_lib.programs import batch

    which: list[int | str] = [*stages, *versions] or [project.production]
    if master:
        from mlops_lib.programs.batch import spark

        if len(which) > 1 or rows:
            raise click.UsageError("--on takes spark or spark=MASTER, with one stage or version and without --rows")
        results = [spark.score_on_spark(project, which[0], input_path, output_path, master=master)]
    else:
        with progress_bar("row") as progress:
            results = batch.score_versions(project, which, input_path, output_path, rows=rows, progress=progress)
    values = [asdict(result) for result in results]
    lines = [line for result in results for line in (str(result), f"predictions: {result.output}")]
    return Answer(values if len(values) > 1 else values[0], lines)


@click.command()
@stage_option
@click.option("--version", type=int, help="Serve this version instead of a stage's.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=5001, show_default=True)
def serve(stage: str | None, version: int | None, host: str, port: int) -> None:
    """Answer MLflow's /invocations with a verified version, until interrupted; a stage is followed as it moves.

    Example: mlops serve --stage prod
    """
    from mlops_lib import registry
    from mlops_lib.programs import service

    project = load_project()
    name = stage or project.production
    release = registry.load_model(project, name if version is None else version)
    service.raise_for_port(host, port)
    click.echo(f"version {release.version} of '{release.name}' on http://{host}:{port}/invocations", err=True)
    service.serve(release, host=host, port=port, follow=(project, name) if version is None else None)


@command
@click.argument("period")
@stage_option
@click.option("--as-of", type=click.DateTime(), help="Only labels known by then (UTC).")
def monitor(project: Project, period: str, stage: str | None, as_of: datetime | None) -> Answer:
    """Compare a period with the training data, and its predictions with the labels that have come. Exit 3 on drift.

    Example: mlops monitor 2013-05
    """
    from mlops_lib.programs import operate

    monitored = operate.monitor_period(project, period, stage, as_of=as_of.replace(tzinfo=UTC) if as_of else None)
    reports = (monitored.drift, monitored.quality)
    return Answer([report.to_dict() for report in reports], [str(report) for report in reports], monitored.passed)
