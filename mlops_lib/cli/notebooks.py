"""Commands that write tables and run notebooks: ingest, run, sweep, check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlops_lib.cli.options import Answer, json_option, load_project, print_answer, progress_bar, spark_option, table_of

if TYPE_CHECKING:
    from mlops_lib.programs.notebooks.run import NotebookRun
    from mlops_lib.project import Project


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
@click.option("--timeout", "timeout_s", type=float, help="Seconds for each whole notebook.")
@click.option("--cached", is_flag=True, help="Return the finished run if nothing it depends on has changed.")
@click.option("--parameters", "show", is_flag=True, help="Print the notebook's parameters and stop.")
@json_option
def run(
    names: tuple[str, ...],
    given: tuple[str, ...],
    n_jobs: int,
    show: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Run notebooks with parameters, each as one tracked run. Every one of them has to declare what is given.

    Example: mlops run 02_train -p family=logistic -p train_until=2013-03
    """
    from mlops_lib.engines import warm

    if not (show or options["cached"]):
        warm.prepare()  # its imports and ours at the same time
    from mlops_lib.programs.notebooks.run import run_notebook

    project = load_project()
    signatures = [_read_signature(project, name) for name in names]
    if show:
        for _, signature in signatures:
            rows = [[p.name, p.annotation, repr(p.default), p.help] for p in signature.values()]
            click.echo("\n".join(table_of(["name", "type", "default", "help"], rows)))
        return
    calls = [(path, _parse(given, signature)) for path, signature in signatures]
    if len(calls) > 1:
        _run_several(project, calls, n_jobs, as_json, options)
        return
    with progress_bar("cell") as progress:
        done = run_notebook(
            project, *calls[0], **options, progress=lambda cell, n_cells, title: progress(cell - 1, n_cells, title)
        )
    print_answer(Answer(_describe(done), [str(done), f"report: {done.html_path}"]), as_json)


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
            if as_json and outcomes:
                click.echo(json.dumps([outcomes[index] for index in sorted(outcomes)], default=str, indent=1))


def _describe(done: NotebookRun) -> dict[str, Any]:
    return {
        "notebook": done.notebook.name,
        "run_id": done.run_id,
        "cached": done.cached,
        "executed": done.executed_path,
        "html": done.html_path,
        "duration_s": round(done.duration_s, 3),
        "result": dict(done.result),
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
@click.option("--timeout", "timeout_s", type=float, help="Seconds for each trial.")
@spark_option
@json_option
def sweep(notebook: str, given: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Run a notebook over a grid of its parameters, and go on where a stopped sweep was. Exit 3 if a trial failed.

    Example: mlops sweep 02_train -g family=logistic,boosting -g random_state=0,1 --metric val_roc_auc
    """
    from mlops_lib.engines import warm

    warm.prepare()
    from mlops_lib.programs import notebooks

    project = load_project()
    path, signature = _read_signature(project, notebook)
    grid: dict[str, list[Any]] = {}
    for text in given:
        for pair in _split(text):
            for name, value in _parse((pair,), signature).items():
                grid.setdefault(name, []).append(value)
    with progress_bar("trial") as progress:
        result = notebooks.sweep(project, path, grid, progress=progress, **options)
    shown = result.trials.loc[[*result.ranking.index, *result.trials.index.difference(result.ranking.index)]]
    shown = shown.drop(columns="run_id").astype(object).where(shown.notna(), "")
    shown["error"] = [text.partition("\n")[0] for text in shown["error"]]  # whole in --json and in the parent's table
    names = ("run_id", "folder", "metric", "passed", "n_executed")
    facts = {name: getattr(result, name) for name in names}
    trials = json.loads(result.trials.to_json(orient="records"))
    table = table_of([str(name) for name in shown], shown.to_numpy().tolist())
    lines = [*table, "", str(result), f"figure: {result.folder}"]
    print_answer(Answer({**facts, "trials": trials}, lines, result.passed), as_json)


def _read_signature(project: Project, notebook: str) -> tuple[Path, Mapping[str, Any]]:
    """Return a notebook's path and its parameters."""
    from mlops_lib.programs.notebooks.run import find_notebook, read_notebook
    from mlops_lib.programs.notebooks.signature import read_signature

    path = find_notebook(project, notebook)
    return path, read_signature(read_notebook(path), path)


def _split(text: str) -> list[str]:
    """Return NAME=A and NAME=B for NAME=A,B; commas inside brackets belong to a value."""
    name, equals, values = text.partition("=")
    if not equals:
        raise click.UsageError(f"'{text}' is not NAME=A,B,…")
    parts, depth = [f"{name}="], 0
    for letter in values:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and not depth:
            parts.append(f"{name}=")
        else:
            parts[-1] += letter
    return parts


def _parse(given: tuple[str, ...], signature: Mapping[str, Any]) -> dict[str, Any]:
    from mlops_lib.programs.notebooks.signature import parse_value

    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"'{text}' is not NAME=VALUE")
        values[name] = parse_value(signature[name], value) if name in signature else value
    return values


@click.command()
@click.argument("names", nargs=-1, metavar="[NOTEBOOK]...")
@click.option("--all", "force", is_flag=True, help="Run even what has passed and not changed since.")
@click.option("--update", is_flag=True, help="Rewrite the outputs that differ, if every cell runs.")
@click.option("--cell-timeout", "cell_timeout_s", default=120, show_default=True, help="Seconds for one cell.")
@json_option
@click.pass_context
def check(
    ctx: click.Context, names: tuple[str, ...], force: bool, update: bool, cell_timeout_s: int, as_json: bool
) -> None:
    """Check committed notebooks: order, types, ruff, and every output against a fresh run. Exit 3 if one does not hold.

    Example: mlops check --all
    """
    from mlops_lib.programs.notebooks.check import check_notebooks, update_notebooks

    with progress_bar("cell") as progress:
        limits: dict[str, Any] = {
            "cell_timeout_s": cell_timeout_s,
            "progress": lambda cell, n_cells, title: progress(cell - 1, n_cells, title),
        }
        if update:
            report = update_notebooks(ctx.obj, names, **limits)
        else:
            report = check_notebooks(ctx.obj, names, force=force, **limits)
    print_answer(report, as_json)
