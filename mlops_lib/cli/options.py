"""What commands share: the project, common options, the one handler of errors, how an answer is printed.

Results go to stdout, progress to stderr. Exit codes: 0 yes; 1 error; 2 usage; 3 it worked and the answer is no (a gate
failed, drift was found).

>>> @command  # doctest: +SKIP
... @reason_option
... def freeze(project: Project, reason: str) -> Entry: ...
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from mlops_lib.errors import MlopsError, RefusedError
from mlops_lib.report import table_lines
from mlops_lib.wording import visible

if TYPE_CHECKING:
    from mlops_lib.project import Project

NO = 3  # it worked and the answer is no
LOOPBACK = ("127.0.0.1", "localhost", "::1")
AS_JSON = "mlops.json"  # in the context: an error is an answer too, unless told already

PORT = click.IntRange(1, 65_535)
SECONDS = click.FloatRange(min=0, min_open=True)


def _note_json(ctx: click.Context, _: click.Parameter, as_json: bool) -> bool:
    ctx.meta[AS_JSON] = as_json
    return as_json


json_option = click.option(
    "--json", "as_json", is_flag=True, is_eager=True, callback=_note_json, help="Print JSON, of errors too."
)
open_option = click.option("--open", "is_open", is_flag=True, help="Answer other machines, which show no account.")


def raise_for_host(host: str, is_open: bool) -> None:
    """Raise ``UsageError`` for a host that other machines reach, unless that was asked for."""
    if host not in LOOPBACK and not is_open:
        raise click.UsageError(
            f"with --host {host} other machines get answers, and nobody shows an account. Say so with --open, or keep "
            f"to 127.0.0.1 behind a proxy that asks for one."
        )


def refuse_both(stage: object, version: object) -> None:
    """Raise ``UsageError`` if a stage and a version are named."""
    if stage is not None and version is not None:
        raise click.UsageError("name --stage or --version, not both")


class Commands(click.Group):
    """The one handler of errors: a line in red, with ``--json`` an object too, and exit 1; ``--debug`` shows where."""

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
            click.secho(visible(str(error), keep="\n\t"), fg="red", err=True)
            if ctx.meta.get(AS_JSON):
                told = {"type": type(error).__name__, "case": error.case, "message": str(error), **error.facts}
                click.echo(json.dumps({"error": told}, default=str, indent=1))
            ctx.exit(NO if isinstance(error, RefusedError) else 1)


@dataclass(frozen=True)
class Answer:
    """What a command has to say: a value for machines, lines for people, and whether that is a yes."""

    value: Any
    lines: Sequence[str]
    passed: bool = True

    def to_dict(self) -> Any:
        """Return the value that ``--json`` prints."""
        return self.value

    def __str__(self) -> str:
        """Return the text for people."""
        return "\n".join(self.lines)


def command(function: Callable[..., Any]) -> click.Command:
    """Make a command, with ``--json``, of a function of the project and the options that returns the answer."""

    @functools.wraps(function)
    def call(as_json: bool, **options: Any) -> None:
        print_answer(function(load_project(), **options), as_json)

    return json_option(click.command(call))


def load_project(*, or_here: bool = False) -> Project:
    """Return the project of the file that ``--project`` names, or of the one that is found; else of this folder."""
    from mlops_lib import project

    return project.load_project(click.get_current_context().obj, or_here=or_here)


def print_answer(answer: Any, as_json: bool) -> None:
    """Print an answer as JSON for machines or as text for people; end with 0 for yes and 3 for no.

    Reports, comparisons and entries of the ledger are answers, as everything is that has a text, ``to_dict()`` or
    fields, and perhaps ``passed``.
    """
    if as_json:
        value = answer.to_dict() if hasattr(answer, "to_dict") else asdict(answer)
        click.echo(json.dumps(value, default=str, indent=1))
    else:
        click.echo(str(answer))
    click.get_current_context().exit(0 if getattr(answer, "passed", True) else NO)


def table_of(header: list[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """Return the lines of a table, or of its emptiness."""
    rows = list(rows)
    return table_lines([header, *rows]) if rows else ["none"]
