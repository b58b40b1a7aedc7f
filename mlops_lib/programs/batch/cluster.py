"""Spark, for who asks for it by ``--on spark``: the session that is there, or one that is stopped again.

pyspark is an extra (``mlops-lib[spark]``) and is imported only here and by whoever has a session.
"""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from mlops_lib.errors import SparkError

LOCAL = "local[*]"


@contextlib.contextmanager
def session(master: str) -> Iterator[Any]:
    """Yield the running session, or one that is stopped again; tell what Spark says as our error.

    Parameters
    ----------
    master : str
        ``local[2]``, ``spark://host:7077``, or ``sc://host`` for Spark Connect.

    Raises
    ------
    SparkError
    """
    with translate_errors(master):
        from pyspark.sql import SparkSession  # noqa: PLC0415

        running = SparkSession.getActiveSession()
        builder = SparkSession.builder
        builder = builder.remote(master) if master.startswith("sc://") else builder.master(master)
        spark = running or builder.config("spark.ui.enabled", "false").getOrCreate()
        if master.startswith("local"):  # elsewhere, PYSPARK_PYTHON says which Python the executors have
            spark.sparkContext.pythonExec = sys.executable
        try:
            with warnings.catch_warnings():
                # It says of pandas 3 as a whole that it is not supported; rows pass as Arrow here.
                warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
                yield spark
        finally:
            if running is None:
                spark.stop()


@contextlib.contextmanager
def translate_errors(master: str) -> Iterator[None]:
    """Tell what Spark raises as ``SparkError``, in one line of its own."""
    try:
        from py4j.protocol import Py4JError  # noqa: PLC0415
        from pyspark.errors import PySparkException  # noqa: PLC0415
    except ImportError as error:
        raise SparkError(master=master, reason=f"it is not installed ({error})") from error
    try:
        yield
    except (PySparkException, Py4JError) as error:  # the latter for a task that was cancelled
        lines = [line.removeprefix(": ") for line in str(error).splitlines()]
        lines = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)] or lines
        raise SparkError(master=master, reason=lines[0].strip().rstrip(".")) from error
