"""Commands that write tables, run notebooks and predict: ingest, run, sweep, check, score, serve."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlops_lib.cli.options import (
    AS_JSON,
    NO,
    PORT,
    SECONDS,
    Answer,
    json_option,
    load_project,
    open_option,
    print_answer,
    raise_for_host,
    refuse_both,
    table_of,
)
from mlops_lib.engines import warm

if TYPE_CHECKING:
    from mlops_lib.programs.notebooks import NotebookRun
    from mlops_lib.project import Project

stage_option = click.option("--stage", help="Stage whose version is used; default the last one, prod.")


def _read_master(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """Return the master that --on names."""
    if text is None:
        return None
    from mlops_lib.programs.batch import cluster

    engine, _, master = text.partition("=")
    if engine != "spark":
        raise click.UsageError(f"--on takes spark or spark=MASTER, not '{text}'")
    return master or cluster.LOCAL


spark_option = click.option(
    "--on",
    "master",
    metavar="spark[=MASTER]",
    callback=_read_master,
    help="Run on Spark: local[*], or spark://… or sc://… as MASTER.",
)


@contextmanager
def progress_bar(unit: str, first: int = 0) -> Iterator[Callable[..., None]]:
    """Show a progress bar on stderr, silent where that is no terminal; yield what tells it how far things are.

    With ``first=1`` it is told what begins, counted from 1, not how many are done.
    """
    from tqdm import tqdm

    with tqdm(unit=unit, unit_scale=True, disable=None, file=sys.stderr, leave=False) as bar:

        def progress(n_done: int, n_all: int | None, text: str = "") -> None:
            bar.total, bar.n = n_all, n_done - first
            bar.set_description_str(text[:40])

        yield progress


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--data", "source", required=True, help="Parquet or CSV file, or URL::TABLE of a database.")
@click.option("--target", required=True, help="Column to predict.")
@click.option("--time", default="", help="Column of the moment at which a row arrives.")
@click.option("--key", "keys", multiple=True, help="Column that identifies a row; may be repeated.")
@click.option("--task", "kind", type=click.Choice(["binary", "multiclass", "regression"]), help="What is asked.")
@click.option("--dry-run", is_flag=True, help="Look at the table and stop.")
@json_option
def new(folder: Path, source: str, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Look at a table, say what it is, and write a whole project for it into an empty folder.

    Example: mlops new churn --data churn.csv --target churned --time signed_up
    """
    from mlops_lib.programs import release

    release.raise_for_folder(folder)
    table = release.read_source(source)
    survey = release.survey_table(table.frame, options.pop("target"), **options)
    if not as_json:
        click.echo(str(survey))
    if not dry_run:
        file = release.create_project(folder, table, survey)
        _execute_new(file)
        click.echo(f"\nWritten to '{folder}'. Next: cd {folder} && ci/demo", err=True)
    if as_json:
        print_answer(Answer(survey.to_dict(), []), as_json)


def _execute_new(file: Path) -> None:
    """Run a new project's notebooks once, so that their outputs are there to be compared with."""
    from mlops_lib.programs.notebooks.check import update_notebooks

    with progress_bar("cell") as progress:
        report = update_notebooks(file, progress=progress)
    if not report.passed:
        click.secho(f"{report}\nThe project is written, but its notebooks do not all run.", fg="red", err=True)
        click.get_current_context().exit(NO)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NOTEBOOK...|MODEL_URI")
@click.option("--write", is_flag=True, help="Give notebooks their parameters cell, and change nothing else.")
@click.option("--data", "table", type=click.Path(path_type=Path), help="Of a model: the table it was trained on.")
@click.option("--unpickle", is_flag=True, help="Of a model: read a pickle that you trust; that is recorded.")
@json_option
def adopt(names: tuple[str, ...], write: bool, table: Path | None, unpickle: bool, as_json: bool) -> None:
    """Say what stands between a notebook and a tracked, checked one (exit 3 if something does), or register a model.

    The model is one that plain MLflow has logged; its contract is learnt from the table that it was trained on:
    mlops adopt models:/old-churn/3 --data train.parquet

    Example: mlops adopt analysis.ipynb --write
    """
    if any(re.match("(models|runs):/", name) for name in names):
        if table is None or len(names) > 1:
            raise click.UsageError("a model is adopted by itself, with the table it was trained on: --data TABLE")
        from mlops_lib import data
        from mlops_lib.programs import release

        version = release.adopt_model(load_project(), names[0], data.read_table(table), unpickle=unpickle)
        print_answer(Answer(asdict(version), [f"version {version.version} of '{version.name}', in dev"]), as_json)
        return
    from mlops_lib.programs.notebooks import adopt as adopting
    from mlops_lib.programs.notebooks.run import find_notebook

    project, reports, lines = load_project(or_here=True), [], []
    for name in names:
        path = find_notebook(project, name)
        done = adopting.write_parameters(path) if write else ""
        reports.append(adopting.examine_notebook(path))
        lines += [str(reports[-1]), *([f"written: {done}"] if done else [])]
    value = [report.to_dict() for report in reports]
    print_answer(Answer(value, lines, all(report.passed for report in reports)), as_json)


@click.command()
def ingest() -> None:
    """Write the tables of every period, once.

    Example: mlops ingest
    """
    project = load_project()
    if project.ingest is None:
        raise click.UsageError("the project declares no ingest function")
    periods = project.ingest()
    click.echo(f"{len(periods)} periods" + (f": {periods[0]} to {periods[-1]}" if periods else ""))


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NOTEBOOK...")
@click.option("-p", "--parameter", "given", multiple=True, metavar="NAME=VALUE", help="A parameter; may be repeated.")
@click.option("-j", "--jobs", "n_jobs", type=click.IntRange(min=1), default=2, show_default=True, help="At a time.")
@click.option("--timeout", "timeout_s", type=SECONDS, help="Seconds for each whole notebook.")
@click.option("--cached", is_flag=True, help="Return the finished run if nothing it depends on has changed.")
@click.option("--parameters", "show", is_flag=True, help="Print the notebook's parameters and stop.")
@json_option
def run(names: tuple[str, ...], given: tuple[str, ...], n_jobs: int, show: bool, as_json: bool, **options: Any) -> None:
    """Run notebooks with parameters, each as one tracked run. Every one of them has to declare what is given.

    Example: mlops run 02_train -p family=logistic -p train_until=2013-03
    """
    if not (show or options["cached"]):
        warm.prepare()  # its imports and ours at the same time
    from mlops_lib.programs.notebooks.run import run_notebook

    project = load_project(or_here=True)
    if project.file is None:
        click.echo(f"no project file: runs go into the experiment '{project.name}' of {project.tracking_uri}", err=True)
    signatures = [_read_signature(project, name) for name in names]
    if show:
        for _, signature in signatures:
            rows = [[p.name, p.annotation, repr(p.default), p.help] for p in signature.values()]
            click.echo("\n".join(table_of(["name", "type", "default", "help"], rows)))
        return
    calls = [
        (path, {name: values[-1] for name, values in _parse(given, signature).items()})
        for path, signature in signatures
    ]
    if len(calls) > 1:
        _run_several(project, calls, n_jobs, as_json, options)
        return
    with progress_bar("cell", first=1) as progress:
        finished = run_notebook(project, *calls[0], **options, progress=progress)
    if options["cached"] and finished.uncacheable:
        click.echo(f"It will not be reused: {finished.uncacheable}", err=True)
    print_answer(Answer(_describe(finished), [str(finished), f"report: {finished.html_path}"]), as_json)


def _run_several(
    project: Project, calls: list[tuple[Path, dict[str, Any]]], n_jobs: int, as_json: bool, options: dict[str, Any]
) -> None:
    """Run notebooks side by side; each is told as it ends, or all of them as JSON at the end."""
    from tqdm import tqdm

    from mlops_lib.programs.notebooks.jobs import run_notebooks

    outcomes: dict[int, dict[str, Any]] = {}
    with progress_bar("notebook") as progress:

        def ended(index: int, outcome: NotebookRun | Exception) -> None:
            with tqdm.external_write_mode():  # the bar makes room
                if isinstance(outcome, Exception):
                    outcomes[index] = {"notebook": calls[index][0].name, "error": str(outcome)}
                    click.secho(str(outcome), fg="red", err=True)
                else:
                    outcomes[index] = _describe(outcome)
                    if not as_json:
                        click.echo(str(outcome))
            progress(len(outcomes), len(calls))

        progress(0, len(calls))
        try:
            run_notebooks(project, calls, n_jobs=n_jobs, **options, ended=ended)
        finally:
            if as_json and outcomes:  # which hold the errors too
                click.echo(json.dumps([outcomes[index] for index in sorted(outcomes)], default=str, indent=1))
                click.get_current_context().meta[AS_JSON] = False


def _describe(finished: NotebookRun) -> dict[str, Any]:
    return {
        "notebook": finished.notebook.name,
        "run_id": finished.run_id,
        "cached": finished.cached,
        "executed": finished.executed_path,
        "html": finished.html_path,
        "duration_s": round(finished.duration_s, 3),
        "result": dict(finished.result),
        "stopped": finished.stopped,
        "uncacheable": finished.uncacheable,
    }


@click.command()
@click.argument("notebook")
@click.option("-g", "--grid", "given", multiple=True, required=True, metavar="NAME=A,B,…", help="May be repeated.")
@click.option("-j", "--jobs", "n_jobs", default=2, show_default=True, help="Trials at a time.")
@click.option("--sample", type=int, help="Run only so many combinations, drawn at random.")
@click.option("--random-state", default=0, show_default=True, help="Seed of that draw.")
@click.option("--metric", help="Result to compare by; default the first float that is recorded.")
@click.option(
    "--greater-is-better/--lower-is-better", default=True, show_default=True, help="Which end of the metric is best."
)
@click.option("--fail-fast", is_flag=True, help="Begin no other trial after the first failure.")
@click.option("--timeout", "timeout_s", type=SECONDS, help="Seconds for each trial.")
@spark_option
@json_option
def sweep(notebook: str, given: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Run a notebook over a grid of its parameters, and go on where a stopped sweep was. Exit 3 if a trial failed.

    Example: mlops sweep 02_train -g family=logistic,boosting -g random_state=0,1 --metric val_roc_auc
    """
    warm.prepare()  # its imports and ours at the same time
    from mlops_lib.programs import notebooks

    project = load_project()
    path, signature = _read_signature(project, notebook)
    grid = _parse(given, signature, several=True)
    with progress_bar("trial") as progress:
        result = notebooks.sweep(project, path, grid, progress=progress, **options)
    shown = result.trials.loc[[*result.ranking.index, *result.trials.index.difference(result.ranking.index)]]
    shown = shown.drop(columns="run_id").astype(object).where(shown.notna(), "")
    shown["error"] = [text.partition("\n")[0] for text in shown["error"]]  # whole in --json and in the parent's table
    table = table_of([str(name) for name in shown], shown.to_numpy().tolist())
    names = ("run_id", "folder", "metric", "passed", "n_executed")
    facts = {name: getattr(result, name) for name in names}
    trials = json.loads(result.trials.to_json(orient="records"))
    lines = [*table, "", str(result), f"figure: {result.folder}"]
    print_answer(Answer({**facts, "trials": trials}, lines, result.passed), as_json)


def _read_signature(project: Project, notebook: str) -> tuple[Path, Mapping[str, Any]]:
    """Return a notebook's path and its parameters."""
    from mlops_lib.programs.notebooks.run import find_notebook, read_notebook
    from mlops_lib.programs.notebooks.signature import read_signature

    path = find_notebook(project, notebook)
    return path, read_signature(read_notebook(path), path)


def _parse(given: tuple[str, ...], signature: Mapping[str, Any], *, several: bool = False) -> dict[str, list[Any]]:
    """Return the values of each name, given as NAME=VALUE, or as NAME=A,B,… where there may be several."""
    from mlops_lib.programs.notebooks.signature import parse_value

    values: dict[str, list[Any]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"'{text}' is not NAME={'A,B,…' if several else 'VALUE'}")
        for part in _split(value) if several else [value]:
            values.setdefault(name, []).append(parse_value(signature[name], part) if name in signature else part)
    return values


def _split(text: str) -> list[str]:
    """Split a text at its commas; those inside brackets belong to a value."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


@click.command()
@click.argument("names", nargs=-1, metavar="[NOTEBOOK]...")
@click.option("--all", "force", is_flag=True, help="Run even what has passed and not changed since.")
@click.option("--update", is_flag=True, help="Rewrite the outputs that differ, if every cell runs.")
@click.option(
    "--cell-timeout",
    "cell_timeout_s",
    type=click.IntRange(min=1),
    default=120,
    show_default=True,
    help="Seconds for one cell.",
)
@json_option
def check(names: tuple[str, ...], force: bool, update: bool, as_json: bool, **limits: Any) -> None:
    """Check committed notebooks: order, types, ruff, and every output against a fresh run. Exit 3 if one does not hold.

    Example: mlops check --all
    """
    from mlops_lib.programs.notebooks.check import check_notebooks, update_notebooks

    file = click.get_current_context().obj
    with progress_bar("cell", first=1) as progress:
        if update:
            report = update_notebooks(file, names, **limits, progress=progress)
        else:
            report = check_notebooks(file, names, force=force, **limits, progress=progress)
    print_answer(report, as_json)


@click.command()
@click.argument("input_path", metavar="INPUT")
@click.argument("output_path", metavar="OUTPUT")
@click.option("--stage", "stages", multiple=True, help="Stage whose version scores; default prod. May be repeated.")
@click.option("--version", "versions", multiple=True, type=int, help="Score with this version. May be repeated.")
@click.option("--rows", type=click.IntRange(min=1), help="Score only the first so many rows: a smoke test.")
@spark_option
@json_option
def score(input_path: str, output_path: str, rows: int | None, master: str | None, as_json: bool, **which: Any) -> None:
    """Score a table; rows that break the contract are set aside with their reasons.

    INPUT is a Parquet or CSV file, a folder of Parquet files, or URL::TABLE or URL::SELECT of a database. OUTPUT is a
    Parquet file or URL::TABLE; with several versions, {version} in its name stands for each one's number.

    \b
    Example: mlops score data/arrivals/2013-05.parquet scored.parquet --stage prod
    Example: mlops score data/arrivals/2013-05.parquet "scored-{version}.parquet" --stage prod --stage dev
    """
    # Both before the project file is read, which imports pyarrow and MLflow. Arrow's own allocator keeps some 40 MiB of
    # what a batch has freed, and is no faster; skops looks for names in every module that is there, for half a second.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    import skops.io  # noqa: F401

    from mlops_lib.programs import batch

    project = load_project()
    versions: list[int | str] = [*which["stages"], *which["versions"]] or [project.production]
    if master:
        from mlops_lib.programs.batch import spark

        if len(versions) > 1 or rows:
            raise click.UsageError("--on takes spark or spark=MASTER, with one stage or version and without --rows")
        results = [spark.score_on_spark(project, versions[0], input_path, output_path, master=master)]
    else:
        with progress_bar("row") as progress:
            results = batch.score_versions(project, versions, input_path, output_path, rows=rows, progress=progress)
    values = [asdict(result) for result in results]
    lines = [line for result in results for line in (str(result), f"predictions: {result.output}")]
    print_answer(Answer(values if len(values) > 1 else values[0], lines), as_json)


@click.command()
@stage_option
@click.option("--version", type=int, help="Serve this version instead of a stage's.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=PORT, default=5001, show_default=True)
@open_option
def serve(stage: str | None, version: int | None, host: str, port: int, is_open: bool) -> None:
    """Answer MLflow's /invocations with a verified version, until interrupted; a stage is followed as it moves.

    Example: mlops serve --stage prod
    """
    from mlops_lib import registry
    from mlops_lib.programs import service

    refuse_both(stage, version)
    raise_for_host(host, is_open)
    project = load_project()
    name = stage or project.production
    release = registry.load_model(project, name if version is None else version)
    service.raise_for_port(host, port)
    click.echo(f"version {release.version} of '{release.name}' on http://{host}:{port}/invocations", err=True)
    service.serve(release, host=host, port=port, follow=(project, name) if version is None else None)
