"""The ``mlops`` command: parse, one library call, print.

Results go to stdout, progress to stderr. Exit codes: 0 yes; 1 error; 2 usage; 3 it worked and the answer is no (a gate
failed, drift was found). Every command imports what it needs, so that ``mlops --help`` loads neither MLflow nor pandas.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from mlops_lib.errors import MlopsError, NotFoundError, RefusedError
from mlops_lib.report import Report, table_lines

if TYPE_CHECKING:
    from mlops_lib.programs.notebooks.run import NotebookRun
    from mlops_lib.project import Project
    from mlops_lib.registry import Entry

NO = 3  # it worked and the answer is no
HERE = {"lab", "ui", "serve", "kernels", "--help", "-h"}  # words of what no warm server is asked for


class Commands(click.Group):
    """The one handler of errors: one line in red and exit 1; ``--debug`` shows the traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the loop, not of the alphabet."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; the refusals of a move between stages are answers (3), every other error is 1."""
        try:
            return super().invoke(ctx)
        except MlopsError as error:
            if ctx.find_root().params.get("debug"):
                raise
            click.secho(str(error), fg="red", err=True)
            ctx.exit(NO if isinstance(error, RefusedError) else 1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--project", "file", type=click.Path(path_type=Path), help="Project file; default notebooks/project.py.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="mlops-lib")
@click.pass_context
def main(ctx: click.Context, file: Path | None, debug: bool) -> None:
    """From a notebook to a model in production, and back again.

    \b
    mlops run 02_train -p family=logistic     train a candidate
    mlops promote 7 staging                   move it on its verdict
    mlops history prod                        who moved what, when, why
    """
    ctx.obj = file


def _project(ctx: click.Context) -> Project:
    from mlops_lib.project import load_project

    return load_project(ctx.obj)


def _print(as_json: bool, value: Any, lines: Callable[[], Iterable[str]]) -> None:
    """Print a value as JSON for machines, or as lines for people."""
    if as_json:
        click.echo(json.dumps(value, default=str, indent=1))
    else:
        click.echo("\n".join(lines()))


def _print_entry(as_json: bool, entry: Entry) -> None:
    _print(as_json, asdict(entry), lambda: [str(entry)])


def _table(header: list[str], rows: list[list[object]]) -> list[str]:
    return table_lines([header, *rows]) if rows else ["none"]


def _bar(unit: str) -> Any:
    """Return a progress bar on stderr, silent where that is no terminal."""
    from tqdm import tqdm

    return tqdm(unit=unit, unit_scale=True, disable=None, file=sys.stderr, leave=False)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
reason_option = click.option("--reason", required=True, help="Why; written in the history.")
stage_option = click.option("--stage", help="Stage whose version is used; default the last one, prod.")


def _read_master(_: click.Context, __: click.Parameter, text: str | None) -> str | None:
    """Return the master that --on names."""
    from mlops_lib.programs.batch import cluster

    engine, _equals, master = (text or "").partition("=")
    if text is not None and engine != "spark":
        raise click.UsageError(f"--on takes spark or spark=MASTER, not '{text}'")
    return None if text is None else master or cluster.LOCAL


spark_option = click.option(
    "--on",
    "master",
    metavar="spark[=MASTER]",
    callback=_read_master,
    help="Run on Spark: local[*], or spark://… or sc://… as MASTER.",
)


@main.command()
@click.pass_context
def ingest(ctx: click.Context) -> None:
    """Write the tables of every period, once.

    Example: mlops ingest
    """
    project = _project(ctx)
    if project.ingest is None:
        raise click.UsageError("the project declares no ingest function")
    periods = project.ingest()
    click.echo(f"{len(periods)} periods" + (f": {periods[0]} to {periods[-1]}" if periods else ""))


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="NOTEBOOK...")
@click.option("-p", "--parameter", "given", multiple=True, metavar="NAME=VALUE", help="A parameter; may be repeated.")
@click.option("-j", "--jobs", "n_jobs", type=click.IntRange(min=1), default=2, show_default=True, help="At a time.")
@click.option("--timeout", "timeout_s", type=float, help="Seconds for each whole notebook.")
@click.option("--cached", is_flag=True, help="Return the finished run if nothing it depends on has changed.")
@click.option("--parameters", "show", is_flag=True, help="Print the notebook's parameters and stop.")
@json_option
@click.pass_context
def run(
    ctx: click.Context,
    /,
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
    from mlops_lib.engines import warm as room

    if not (show or options["cached"]):
        room.prepare()  # its imports and ours at the same time
    from mlops_lib.programs.notebooks.jobs import run_notebooks
    from mlops_lib.programs.notebooks.run import find_notebook, read_notebook, run_notebook
    from mlops_lib.programs.notebooks.signature import read_signature

    project = _project(ctx)
    paths = [find_notebook(project, name) for name in names]
    signatures = [read_signature(read_notebook(path), path) for path in paths]
    if show:
        for signature in signatures:
            rows: list[list[object]] = [[p.name, p.annotation, repr(p.default), p.help] for p in signature.values()]
            click.echo("\n".join(_table(["name", "type", "default", "help"], rows)))
        return
    calls = [(path, _parse(given, signature)) for path, signature in zip(paths, signatures, strict=True)]
    if len(calls) == 1:
        with _bar("cell") as bar:

            def progress(cell: int, n_cells: int, title: str) -> None:
                bar.total, bar.n = n_cells, cell - 1
                bar.set_description_str(title[:40])

            done = run_notebook(project, *calls[0], **options, progress=progress)
        _print(as_json, _describe(done), lambda: [str(done), f"report: {done.html_path}"])
        return
    outcomes: dict[int, dict[str, Any]] = {}
    with _bar("notebook") as bar:
        bar.total = len(calls)

        def ended(index: int, outcome: NotebookRun | Exception) -> None:
            bar.clear()
            if isinstance(outcome, Exception):
                outcomes[index] = {"notebook": paths[index].name, "error": str(outcome)}
                click.secho(str(outcome), fg="red", err=True)
            else:
                outcomes[index] = _describe(outcome)
                if not as_json:
                    click.echo(str(outcome))
            bar.update()

        try:
            run_notebooks(project, calls, n_jobs=n_jobs, **options, ended=ended)
        finally:
            if as_json and outcomes:
                click.echo(json.dumps([outcomes[index] for index in sorted(outcomes)], default=str, indent=1))


def _describe(done: NotebookRun) -> dict[str, Any]:
    where = {"run_id": done.run_id, "cached": done.cached, "executed": done.executed_path, "html": done.html_path}
    return {
        "notebook": done.notebook.name,
        **where,
        "duration_s": round(done.duration_s, 3),
        "result": dict(done.result),
    }


@main.command()
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
@click.pass_context
def sweep(ctx: click.Context, /, notebook: str, given: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Run a notebook over a grid of its parameters, and go on where a stopped sweep was. Exit 3 if a trial failed.

    Example: mlops sweep 02_train -g family=logistic,boosting -g random_state=0,1 --metric val_roc_auc
    """
    from mlops_lib.engines import warm as room
    from mlops_lib.programs import notebooks

    room.prepare()
    from mlops_lib.programs.notebooks.run import find_notebook, read_notebook
    from mlops_lib.programs.notebooks.signature import read_signature

    project = _project(ctx)
    path = find_notebook(project, notebook)
    signature = read_signature(read_notebook(path), path)
    grid: dict[str, list[Any]] = {}
    for text in given:
        for pair in _split(text):
            for name, value in _parse((pair,), signature).items():
                grid.setdefault(name, []).append(value)
    with _bar("trial") as bar:

        def progress(done: int, n_trials: int, text: str) -> None:
            bar.total, bar.n = n_trials, done
            bar.set_description_str(text)

        found = notebooks.sweep(project, path, grid, progress=progress, **options)
    shown = found.trials.loc[[*found.ranking.index, *found.trials.index.difference(found.ranking.index)]]
    shown = shown.drop(columns="run_id").astype(object).where(shown.notna(), "")
    shown["error"] = [text.partition("\n")[0] for text in shown["error"]]  # whole in --json and in the parent's table
    where = {"run_id": found.run_id, "folder": found.folder, "metric": found.metric, "passed": found.passed}
    _print(
        as_json,
        {**where, "n_executed": found.n_executed, "trials": json.loads(found.trials.to_json(orient="records"))},
        lambda: [*_table(list(shown.columns), shown.to_numpy().tolist()), "", str(found), f"figure: {found.folder}"],
    )
    ctx.exit(0 if found.passed else NO)


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


@main.command()
@click.argument("names", nargs=-1, metavar="[NOTEBOOK]...")
@click.option("--all", "force", is_flag=True, help="Run even what has passed and not changed since.")
@click.option("--update", is_flag=True, help="Rewrite the outputs that differ, if every cell runs.")
@click.option("--cell-timeout", "cell_timeout_s", default=120, show_default=True, help="Seconds for one cell.")
@json_option
@click.pass_context
def check(
    ctx: click.Context, names: tuple[str, ...], force: bool, update: bool, cell_timeout_s: int, as_json: bool
) -> None:
    """Check committed notebooks: style, and every output against a fresh run. Exit 3 if one does not hold.

    Example: mlops check --all
    """
    from mlops_lib.programs.notebooks.check import check_notebooks, update_notebooks

    with _bar("cell") as bar:

        def progress(cell: int, n_cells: int, title: str) -> None:
            bar.total, bar.n = n_cells, cell - 1
            bar.set_description_str(title)

        limits: dict[str, Any] = {"cell_timeout_s": cell_timeout_s, "progress": progress}
        if update:
            report = update_notebooks(ctx.obj, names, **limits)
        else:
            report = check_notebooks(ctx.obj, names, force=force, **limits)
    _print(as_json, report.to_dict(), lambda: [str(report)])
    ctx.exit(0 if report.passed else NO)


@main.command()
@json_option
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """List every version with its stages and metrics, newest first.

    Example: mlops models
    """
    from mlops_lib import registry

    project = _project(ctx)
    versions = registry.list_versions(project)
    names = sorted({name for version in versions for name in version.metrics})
    rows: list[list[object]] = [
        [v.version, ", ".join(v.stages), *(v.metrics.get(n) for n in names), v.created_at, v.description]
        for v in versions
    ]
    header = ["version", "stages", *names, "registered", "description"]
    _print(as_json, [asdict(v) for v in versions], lambda: _table(header, rows))


@main.command()
@click.argument("version")
@json_option
@click.pass_context
def show(ctx: click.Context, version: str, as_json: bool) -> None:
    """Show a version: where it came from, what it was trained on, what it passed.

    Example: mlops show prod
    """
    from mlops_lib import registry

    project = _project(ctx)
    found = registry.get_version(project, version)
    lineage = registry.read_lineage(project, found)
    verdict = registry.load_verdict(project, found.version)
    facts = {**asdict(found), "lineage": lineage, "verdict": verdict.to_dict() if verdict else None}

    def lines() -> list[str]:
        head: list[list[object]] = [
            ["version", f"{found.version} of '{found.name}', stages: {', '.join(found.stages) or 'none'}"],
            ["registered", f"{found.created_at}  {found.description}"],
            ["digest", found.digest],
            *([name, value] for name, value in {**found.metrics, **lineage}.items()),
        ]
        return [*table_lines(head), "", str(verdict) if verdict else "no verdict on it yet: run 03_validate"]

    _print(as_json, facts, lines)


@main.command()
@click.argument("first")
@click.argument("second")
@click.option("--period", "periods", multiple=True, help="Labelled period to score with both; may be repeated.")
@json_option
@click.pass_context
def compare(ctx: click.Context, first: str, second: str, periods: tuple[str, ...], as_json: bool) -> None:
    """Compare two versions: metrics on the same rows, parameters, contract, data, environment, code.

    Example: mlops compare prod staging
    """
    from mlops_lib import gates

    found = gates.compare_versions(_project(ctx), first, second, periods=periods or None)
    _print(as_json, found.to_dict(), lambda: [str(found)])


@main.command()
@click.argument("version")
@click.argument("other", required=False)
@json_option
@click.pass_context
def contract(ctx: click.Context, version: str, other: str | None, as_json: bool) -> None:
    """Show what rows a version takes; with OTHER, whether tables made for VERSION can feed it. Exit 3 on breaking.

    Example: mlops contract prod 7
    """
    from mlops_lib import contracts, registry

    project = _project(ctx)

    def read(which: str) -> contracts.Contract:
        release = registry.load_model(project, which)
        if not release.files.contract:
            raise NotFoundError("contract", name=release.name, version=release.version)
        return contracts.Contract.from_dict(release.files.contract)

    if other is None:
        found = read(version)
        _print(as_json, {**found.to_dict(), "digest": found.digest}, lambda: [str(found)])
        return
    report = contracts.compare_contracts(read(version), read(other))
    verdict = report.facts["compatibility"]
    _print(as_json, report.to_dict(), lambda: [f"{other} against {version}: {verdict}", str(report)])
    ctx.exit(0 if report.passed else NO)


@main.command()
@click.argument("version", type=int)
@click.argument("stage")
@click.option("--reason", default="", help="Why; written in the history.")
@click.option("--force", is_flag=True, help="Move although gates failed; takes a reason, stays in the history.")
@json_option
@click.pass_context
def promote(ctx: click.Context, version: int, stage: str, reason: str, force: bool, as_json: bool) -> None:
    """Move a version to the next stage, on the verdict that 03_validate logged for it.

    Example: mlops promote 7 staging --reason "best of four on April"
    """
    from mlops_lib import registry

    _print_entry(as_json, registry.promote(_project(ctx), version, stage, reason=reason, force=force))


@main.command()
@click.argument("stage")
@click.option("--to", type=int, help="Version to go back to; default the one before.")
@reason_option
@json_option
@click.pass_context
def rollback(ctx: click.Context, stage: str, to: int | None, reason: str, as_json: bool) -> None:
    """Move a stage back to a version that it had, verified and loaded first.

    Example: mlops rollback prod --reason "complaints from EWR"
    """
    from mlops_lib import registry

    _print_entry(as_json, registry.rollback(_project(ctx), stage, to=to, reason=reason))


@main.command()
@click.argument("version", type=int)
@click.argument("stage")
@reason_option
@json_option
@click.pass_context
def approve(ctx: click.Context, version: int, stage: str, reason: str, as_json: bool) -> None:
    """Agree, as a second person, that a version is promoted to a stage that needs one.

    Example: mlops approve 7 prod --reason "read the report of April"
    """
    from mlops_lib import registry

    _print_entry(as_json, registry.approve(_project(ctx), version, stage, reason=reason))


@main.command()
@click.argument("stage")
@reason_option
@json_option
@click.pass_context
def freeze(ctx: click.Context, stage: str, reason: str, as_json: bool) -> None:
    """Keep a stage as it is: no promotion, no force, no rollback until it is unfrozen.

    Example: mlops freeze prod --reason "holiday traffic"
    """
    from mlops_lib import registry

    _print_entry(as_json, registry.freeze(_project(ctx), stage, reason=reason))


@main.command()
@click.argument("stage")
@reason_option
@json_option
@click.pass_context
def unfreeze(ctx: click.Context, stage: str, reason: str, as_json: bool) -> None:
    """Let a frozen stage move again.

    Example: mlops unfreeze prod --reason "holidays are over"
    """
    from mlops_lib import registry

    _print_entry(as_json, registry.unfreeze(_project(ctx), stage, reason=reason))


@main.command()
@click.argument("version", type=int)
@reason_option
@json_option
@click.pass_context
def delete(ctx: click.Context, version: int, reason: str, as_json: bool) -> None:
    """Delete a version that no stage has and no rollback could need; its history stays.

    Example: mlops delete 3 --reason "trained on the wrong month"
    """
    from mlops_lib import registry

    _print_entry(as_json, registry.delete_version(_project(ctx), version, reason=reason))


@main.command()
@click.argument("stage", required=False)
@click.option("--at", help="Show what each stage had then instead, such as 2026-11-01T12:00Z.")
@json_option
@click.pass_context
def history(ctx: click.Context, stage: str | None, at: str | None, as_json: bool) -> None:
    """Tell who moved what, when, why and on which evidence; forced moves are red. Or what every stage had at a time.

    Example: mlops history prod
    """
    from mlops_lib import registry

    project = _project(ctx)
    if at is not None:
        time = _moment_of(at)
        if stage is not None:
            project.raise_for_stage(stage)
        found = {name: entry for name, entry in registry.as_of(project, time).items() if stage in (None, name)}
        standing: list[list[object]] = [
            [s, e.version, e.at[:19], e.actor, e.action, e.reason] if e else [s, "", "", "", "", "empty"]
            for s, e in found.items()
        ]
        header = ["stage", "version", "since", "who", "move", "why"]
        stages = {name: asdict(entry) if entry else None for name, entry in found.items()}
        red = {n for n, entry in enumerate(found.values(), start=1) if entry and entry.action == "force"}
        _print(as_json, {"at": time.isoformat(), "stages": stages}, lambda: _redden(_table(header, standing), red))
        return
    entries = registry.history(project, stage)

    def lines() -> list[str]:
        header = ["#", "when", "who", "move", "stage", "version", "from", "evidence", "why"]
        rows = [_entry_cells(entry) for entry in entries]
        return _redden(_table(header, rows), {i for i, e in enumerate(entries, start=1) if e.action == "force"})

    _print(as_json, [asdict(entry) for entry in entries], lines)


def _entry_cells(e: Entry) -> list[object]:
    when, version = e.at[:19], e.version or None
    return [e.number, when, e.actor, e.action, e.stage, version, e.from_version, e.verdict[:12], e.reason]


def _redden(lines: list[str], numbers: set[int]) -> list[str]:
    return [click.style(line, fg="red") if n in numbers else line for n, line in enumerate(lines)]


def _moment_of(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"'{text}' is no time such as 2026-11-01T12:00Z", param_hint="--at") from None


@main.command()
@click.argument("input_path", metavar="INPUT")
@click.argument("output_path", metavar="OUTPUT")
@click.option("--stage", "stages", multiple=True, help="Stage whose version scores; default prod. May be repeated.")
@click.option("--version", "versions", multiple=True, type=int, help="Score with this version. May be repeated.")
@click.option("--rows", type=click.IntRange(min=1), help="Score only the first so many rows: a smoke test.")
@spark_option
@json_option
@click.pass_context
def score(
    ctx: click.Context,
    input_path: str,
    output_path: str,
    stages: tuple[str, ...],
    versions: tuple[int, ...],
    rows: int | None,
    master: str | None,
    as_json: bool,
) -> None:
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

    project = _project(ctx)
    which: list[int | str] = [*stages, *versions] or [project.production]
    if master:
        _score_on_spark(project, which, input_path, output_path, rows, master, as_json)
        return
    with _bar("row") as bar:

        def progress(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        results = batch.score_versions(project, which, input_path, output_path, rows=rows, progress=progress)
    found: Any = [asdict(result) for result in results]
    lines = [line for result in results for line in (str(result), f"predictions: {result.output}")]
    _print(as_json, found if len(found) > 1 else found[0], lambda: lines)


def _score_on_spark(
    project: Project, which: list[int | str], source: str, output: str, rows: int | None, master: str, as_json: bool
) -> None:
    from mlops_lib.programs.batch import spark

    if len(which) > 1 or rows:
        raise click.UsageError("--on takes spark or spark=MASTER, with one stage or version and without --rows")
    result = spark.score_on_spark(project, which[0], source, output, master=master)
    _print(as_json, asdict(result), lambda: [str(result), f"predictions: {result.output}"])


@main.command()
@stage_option
@click.option("--version", type=int, help="Serve this version instead of a stage's.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=5001, show_default=True)
@click.pass_context
def serve(ctx: click.Context, stage: str | None, version: int | None, host: str, port: int) -> None:
    """Answer MLflow's /invocations with a verified version, until interrupted; a stage is followed as it moves.

    Example: mlops serve --stage prod
    """
    from mlops_lib import registry
    from mlops_lib.programs import service

    project = _project(ctx)
    name = stage or project.production
    release = registry.load_model(project, name if version is None else version)
    service.raise_for_port(host, port)
    click.echo(f"version {release.version} of '{release.name}' on http://{host}:{port}/invocations", err=True)
    service.serve(release, host=host, port=port, follow=(project, name) if version is None else None)


@main.command()
@click.argument("period")
@stage_option
@click.option("--as-of", type=click.DateTime(), help="Only labels known by then (UTC).")
@json_option
@click.pass_context
def monitor(ctx: click.Context, period: str, stage: str | None, as_of: datetime | None, as_json: bool) -> None:
    """Compare a period with the training data, and its predictions with the labels that have come. Exit 3 on drift.

    Example: mlops monitor 2013-05
    """
    from mlops_lib.programs import operate

    project = _project(ctx)
    seen = operate.monitor_period(project, period, stage, as_of=_aware(as_of))
    reports: list[Report] = [seen.drift, seen.quality]
    _print(as_json, [report.to_dict() for report in reports], lambda: [str(report) for report in reports])
    ctx.exit(0 if seen.passed else NO)


def _moment(seconds: float) -> str:
    from datetime import UTC

    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _aware(moment: datetime | None) -> datetime | None:
    from datetime import UTC

    return moment.replace(tzinfo=UTC) if moment else None


@main.command()
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def lab(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Open JupyterLab on the notebooks, with the command line's store and warm kernels.

    Example: mlops lab
    """
    project = _project(ctx)
    _exec(project, "jupyter", "lab", str(project.root / project.notebooks), *arguments)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=5000, show_default=True)
@click.pass_context
def ui(ctx: click.Context, host: str, port: int) -> None:
    """Open MLflow's own pages on the store.

    Example: mlops ui
    """
    from mlops_lib.tracking import store

    project = _project(ctx)
    store.connect(project.tracking_uri)
    if store.sqlite_path(project.tracking_uri) is None:
        click.echo(f"The store is a server already: {project.tracking_uri}")
        return
    root = store.artifact_root(project.tracking_uri) or ""
    uris = ["--backend-store-uri", project.tracking_uri, "--default-artifact-root", root]
    click.echo(f"MLflow on http://{host}:{port} (model '{project.name}')", err=True)
    _exec(project, "mlflow", "server", *uris, "--host", host, "--port", str(port), "--workers", "1")


def _exec(project: Project, program: str, *arguments: str) -> None:
    """Replace this process by a program of the same environment, with the project's store and warm kernels."""
    import os

    from mlops_lib.engines import warm

    bin_folder = str(Path(sys.executable).parent)
    environment = {
        **project.environ,
        **warm.environment(),
        "MLFLOW_TRACKING_URI": project.tracking_uri,
        "MLOPS_PROJECT": str(project.file),
        # Without the job runners a server for one user starts in 4 s with 2 processes instead of 9 s with 15.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PATH": f"{bin_folder}{os.pathsep}{project.environ.get('PATH', '')}",
    }
    os.chdir(project.root)
    os.execve(f"{bin_folder}/{program}", [program, *arguments], environment)


@main.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check environment, project, store and registry; say what to do about each fault. Exit 3 if one was found.

    Example: mlops doctor
    """
    from mlops_lib.programs import operate

    report = operate.examine(ctx.obj)
    facts = table_lines([[name, value] for name, value in report.facts.items()])
    _print(as_json, report.to_dict(), lambda: [str(report), "", *facts])
    ctx.exit(0 if report.passed else NO)


@main.command()
@click.argument("version", required=False)
@click.option(
    "--all", "everything", is_flag=True, help="Compare the files of every version, not only of those in stages."
)
@click.option("--repair", is_flag=True, help="Set right what can be without loss: aliases, dead runs, PENDING models.")
@json_option
@click.pass_context
def verify(ctx: click.Context, version: str | None, everything: bool, repair: bool, as_json: bool) -> None:
    """Check database, ledger, aliases, model files and runs: is all as it was written? Exit 3 if something is not.

    Example: mlops verify --all
    """
    from mlops_lib.registry import verify as room

    if version is not None and everything:
        raise click.UsageError("name a version or --all, not both")
    project = _project(ctx)
    done = room.repair_store(project) if repair else ()
    report = room.check_store(project, version, everything=everything)
    _print(
        as_json, {**report.to_dict(), "repaired": done}, lambda: [*(f"repaired: {text}" for text in done), str(report)]
    )
    ctx.exit(0 if report.passed else NO)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def keys(folder: Path) -> None:
    """Make a pair of keys that sign models; print the public one, for Project(trusted_keys=...).

    Example: mlops keys ~/.config/mlops
    """
    from mlops_lib.models import signing

    private = signing.create_keys(folder)
    click.echo((folder / signing.PUBLIC_FILE).read_text(encoding="ascii").strip())
    click.echo(f"Sign with it: export MLOPS_SIGNING_KEY={private}", err=True)


@main.group(cls=Commands)
def kernels() -> None:
    """Warm kernels: notebooks whose heavy imports are already done.

    Commands are warm too: while the process that forks kernels lives, they run in a fork of it and start at once. With
    MLOPS_WARM=0 in the environment they run by themselves.

    Example: mlops kernels status
    """


@kernels.command("status")
@json_option
def kernels_status(as_json: bool) -> None:
    """List the processes that fork kernels, and the kernels that live.

    Example: mlops kernels status
    """
    from mlops_lib.engines import warm as room

    servers = room.status()
    rows: list[list[object]] = [
        [s["key"], s["pid"], _moment(s["started_at"]), f"{s['preload_s']:.1f} s", len(s["kernels"])] for s in servers
    ]
    _print(as_json, servers, lambda: _table(["server", "pid", "started", "preload", "kernels"], rows))


@kernels.command("stop")
def kernels_stop() -> None:
    """End every warm server, and the kernels and commands that it has forked with it.

    Example: mlops kernels stop
    """
    from mlops_lib.engines import warm as room

    servers = room.status()
    n_kernels, n_commands = (sum(len(server[name]) for server in servers) for name in ("kernels", "commands"))
    click.echo(f"servers stopped: {room.stop()}, ended with them: {n_kernels} kernels, {n_commands} commands")


@kernels.command("install")
def kernels_install() -> None:
    """Offer warm kernels by name, 'Python 3 (warm)', to every Jupyter program of this environment.

    Example: mlops kernels install
    """
    from mlops_lib.engines import warm as room

    click.echo(f"kernelspec written: {room.install()}")


def entry() -> None:
    """Be the ``mlops`` of a shell: its command runs in a fork of the warm server where one answers, else here.

    What lives long or handles the server, and everything where the environment says ``MLOPS_WARM=0``, runs here.
    """
    import gc

    if sys.argv[1:] not in ([], ["--version"]) and not HERE & {*sys.argv}:
        from mlops_lib.engines.warm.client import run_command

        try:
            code = run_command()
        except MlopsError as error:
            click.secho(str(error), fg="red", err=True)
            code = 1
        if code is not None:
            _exit_like(code)
    gc.set_threshold(100_000, 20, 100)  # imports make a million objects that stay: nothing is gained by looking at them
    try:
        main()
    finally:
        gc.freeze()  # nor at the end


def _exit_like(code: int) -> NoReturn:
    """End with a command's exit code, or by the signal that has ended it."""
    if code < 0:
        import os
        import signal
        from contextlib import suppress

        with suppress(OSError):  # SIGKILL is always as it was
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
