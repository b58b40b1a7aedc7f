"""``python -m mlops_lib.cli``."""

from mlops_lib.cli.commands import main

main()
