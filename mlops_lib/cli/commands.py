"""The ``mlops`` command: parse, one library call, print.

Every command imports what it needs, so that ``mlops --help`` loads neither MLflow nor pandas; what they share, exit
codes among it, is in :mod:`mlops_lib.cli.options`.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from mlops_lib.cli import operating, programs, stages
from mlops_lib.cli.options import (
    LOOPBACK,
    PORT,
    Answer,
    Commands,
    command,
    json_option,
    load_project,
    open_option,
    print_answer,
    raise_for_host,
    table_of,
)
from mlops_lib.engines import warm
from mlops_lib.errors import MlopsError
from mlops_lib.report import table_lines

if TYPE_CHECKING:
    from mlops_lib.project import Project

HERE = {"lab", "ui", "serve", "kernels", "--help", "-h"}  # words of what no warm server is asked for


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


# --- the place itself --------------------------------------------------------------------------------------------


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lab(arguments: tuple[str, ...]) -> None:
    """Open JupyterLab on the notebooks, with the command line's store and warm kernels.

    Its root is the project's folder, so that executed notebooks in runs/ open too. Further arguments are JupyterLab's.

    Example: mlops lab --no-browser
    """
    project = load_project(or_here=True)
    opened = f"--LabApp.default_url=/lab/tree/{project.notebooks}"
    _exec(project, "jupyter", "lab", str(project.root), opened, *arguments)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=PORT, default=5000, show_default=True)
@open_option
def ui(host: str, port: int, is_open: bool) -> None:
    """Open MLflow's own pages on the store.

    Example: mlops ui
    """
    from mlops_lib.tracking import store

    raise_for_host(host, is_open)
    project = load_project(or_here=True)
    store.connect(project.tracking_uri)
    if store.sqlite_path(project.tracking_uri) is None:
        click.echo(f"The store is a server already: {project.tracking_uri}")
        return
    root = store.artifact_root(project.tracking_uri) or ""
    uris = ["--backend-store-uri", project.tracking_uri, "--default-artifact-root", root]
    click.echo(f"MLflow on http://{host}:{port} (model '{project.name}')", err=True)
    hosts = "*" if host not in LOOPBACK else ",".join(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]"))
    _exec(
        project,
        *("mlflow", "server", *uris, "--host", host, "--port", str(port), "--workers", "1", "--allowed-hosts", hosts),
    )


def _exec(project: Project, program: str, *arguments: str) -> None:
    """Replace this process by a program of the same environment, with the project's store and warm kernels."""
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        **project.environ,
        **warm.environment(),
        "MLFLOW_TRACKING_URI": project.tracking_uri,
        **({"MLOPS_PROJECT": str(project.file)} if project.file else {}),
        # Without the job runners a server for one user starts in 4 s with 2 processes instead of 9 s with 15.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PATH": f"{bin_folder}{os.pathsep}{project.environ.get('PATH', '')}",
    }
    os.chdir(project.root)
    os.execve(f"{bin_folder}/{program}", [program, *arguments], environment)


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check environment, project, store and registry; say what to do about each fault. Exit 3 if one was found.

    Example: mlops doctor
    """
    from mlops_lib.programs import operate

    report = operate.examine(click.get_current_context().obj)
    lines = [str(report), "", *table_lines(report.facts.items())]
    print_answer(Answer(report.to_dict(), lines, report.passed), as_json)


@command
@click.argument("version", required=False)
@click.option(
    "--all", "everything", is_flag=True, help="Compare the files of every version, not only of those in stages."
)
@click.option("--repair", is_flag=True, help="Set right what can be without loss: aliases, dead runs, PENDING models.")
@click.option("--head", "heads", multiple=True, metavar="LABEL:HASH", help="An entry that has to be there, as noted.")
def verify(project: Project, version: str | None, everything: bool, repair: bool, heads: tuple[str, ...]) -> Answer:
    """Check database, ledger, aliases, model files and runs: is all as it was written? Exit 3 if something is not.

    Example: mlops verify --all
    """
    from mlops_lib import registry

    if version is not None and everything:
        raise click.UsageError("name a version or --all, not both")
    repaired = registry.repair_store(project) if repair else ()
    report = registry.check_store(project, version, everything=everything, heads=heads)
    lines = [*(f"repaired: {text}" for text in repaired), str(report), f"head: {report.facts.get('head', 'none')}"]
    return Answer({**report.to_dict(), "repaired": repaired}, lines, report.passed)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def keys(folder: Path) -> None:
    """Make a pair of keys that sign models; print the public one, for Project(trusted_keys=...).

    Example: mlops keys ~/.config/mlops
    """
    from mlops_lib.models import signing

    private = signing.create_keys(folder)
    click.echo((folder / signing.PUBLIC_FILE).read_text(encoding="ascii").strip())
    click.echo(f"Sign with it: export MLOPS_SIGNING_KEY={private}", err=True)


@click.group(cls=Commands)
def kernels() -> None:
    """Warm kernels: notebooks whose heavy imports are already done.

    Commands are warm too: while the process that forks kernels lives, they run in a fork of it and start at once. With
    MLOPS_WARM=0 in the environment they run by themselves.

    Example: mlops kernels status
    """


@kernels.command()
@json_option
def status(as_json: bool) -> None:
    """List the processes that fork kernels, and the kernels that live.

    Example: mlops kernels status
    """
    servers = warm.status()
    rows = []
    for server in servers:
        started = datetime.fromtimestamp(server["started_at"], UTC).isoformat(timespec="seconds")
        preload, checkout = f"{server['preload_s']:.1f} s", Path(server["python"]).parents[2]
        rows.append([server["key"], server["pid"], started, preload, len(server["kernels"]), checkout])
    header = ["server", "pid", "started", "preload", "kernels", "checkout"]
    print_answer(Answer(servers, table_of(header, rows)), as_json)


@kernels.command()
@click.option("--all", "everywhere", is_flag=True, help="Those of this user's other checkouts too.")
def stop(everywhere: bool) -> None:
    """End this checkout's warm servers, and the kernels and commands that they have forked with them.

    Example: mlops kernels stop
    """
    servers = warm.status(everywhere=everywhere)
    n_kernels, n_commands = (sum(len(server[name]) for server in servers) for name in ("kernels", "commands"))
    n_servers = warm.stop(everywhere=everywhere)
    click.echo(f"servers stopped: {n_servers}, ended with them: {n_kernels} kernels, {n_commands} commands")


@kernels.command()
def install() -> None:
    """Offer warm kernels by name, 'Python 3 (warm)', to every Jupyter program of this environment.

    Example: mlops kernels install
    """
    click.echo(f"kernelspec written: {warm.install()}")


for _command in (
    *(programs.new, programs.adopt, programs.ingest, programs.run, programs.sweep, programs.check),
    *(stages.models, stages.show, stages.compare, stages.contract),
    *(stages.promote, stages.rollback, stages.approve, stages.freeze, stages.unfreeze, stages.delete, stages.history),
    *(programs.score, programs.serve),
    *(operating.operate, operating.monitor, operating.feedback, operating.trace, operating.replay),
    operating.status,
    *(lab, ui, doctor, verify, keys, kernels),
):
    main.add_command(_command)


def entry() -> None:
    """Be the ``mlops`` of a shell: its command runs in a fork of the warm server where one answers, else here.

    What lives long or handles the server, and everything where the environment says ``MLOPS_WARM=0``, runs here.
    """
    if sys.argv[1:] not in ([], ["--version"]) and not HERE & {*sys.argv}:
        try:
            code = warm.entry()
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
        with suppress(OSError):  # SIGKILL is always as it was
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
