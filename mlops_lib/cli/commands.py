"""The ``mlops`` command: parse, one library call, print.

Every command imports what it needs, so that ``mlops --help`` loads neither MLflow nor pandas; what they share, exit
codes among it, is in :mod:`mlops_lib.cli.options`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import click

from mlops_lib.cli import admin, notebooks, scoring, stages
from mlops_lib.cli.options import Commands
from mlops_lib.errors import MlopsError

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


for _command in (
    *(notebooks.ingest, notebooks.run, notebooks.sweep, notebooks.check),
    *(stages.models, stages.show, stages.compare, stages.contract),
    *(stages.promote, stages.rollback, stages.approve, stages.freeze, stages.unfreeze, stages.delete, stages.history),
    *(scoring.score, scoring.serve, scoring.monitor),
    *(admin.lab, admin.ui, admin.doctor, admin.verify, admin.keys, admin.kernels),
):
    main.add_command(_command)


def entry() -> None:
    """Be the ``mlops`` of a shell: its command runs in a fork of the warm server where one answers, else here.

    What lives long or handles the server, and everything where the environment says ``MLOPS_WARM=0``, runs here.
    """
    import gc

    if sys.argv[1:] not in ([], ["--version"]) and not HERE & {*sys.argv}:
        from mlops_lib.engines import warm

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
        import os
        import signal
        from contextlib import suppress

        with suppress(OSError):  # SIGKILL is always as it was
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
