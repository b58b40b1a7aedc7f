"""The command line: parse, one call, print."""

from mlops_lib.cli.commands import entry, main

__all__ = ["entry", "main"]
