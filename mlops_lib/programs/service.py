"""The HTTP service, first form: MLflow's ``/invocations`` on a verified release, its version in a header.

It follows a stage: another version is loaded and verified beside the one that answers, which goes on if that fails.

Bodies are MLflow's JSON forms (``dataframe_records``, ``dataframe_split``, ``inputs``, ``instances``); answers have its
shape, ``{"predictions": …}``. Every row is held to the contract that batch scoring uses; a body with a bad row is
refused with row and rule, and never echoed. It listens on this machine only, unless told otherwise.

>>> app = create_app(registry.load_model(project, "prod"))  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import uvicorn
from fastapi import FastAPI, Request
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from mlops_lib import contracts, registry
from mlops_lib.engines import exact
from mlops_lib.errors import MlopsError, ServiceError
from mlops_lib.project import Project
from mlops_lib.registry import Entry, Release

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")  # names by which this machine calls itself
LOOK_S = 10.0  # how often the service asks what its stage has
MAX_PAUSE_S = 600.0  # how long a version that was refused is left alone at most
FORMS = ("dataframe_records", "dataframe_split", "inputs", "instances")


class Served:
    """A release, ready to answer. Never changed: a request has one from its first byte to its last.

    Parameters
    ----------
    release : Release
        As ``registry.load_model`` verified it.
    """

    def __init__(self, release: Release) -> None:
        self.release = release
        # One row of a request has no key, and the share of bad rows is the caller's business: one is too many.
        self.contract = replace(contracts.Contract.from_dict(release.files.contract), keys=())
        self.scorer = exact.scorer_for(release.model, release.files.compiled)
        self.headers = {"X-Model-Version": str(release.version), "X-Model-Digest": release.digest}


class Follower:
    """Keeps what is served in step with a stage; whatever is wrong with another version, the old one goes on.

    Parameters
    ----------
    project : Project
    stage : str
    release : Release
        What the stage had at the start.
    """

    def __init__(self, project: Project, stage: str, release: Release) -> None:
        self.project, self.stage, self.served = project, stage, Served(release)
        self.waiting = ""  # why the stage's version is not served
        self._refused: Entry | None = None  # the move that brought what was not served
        self._pause_s = self._again_at = 0.0

    def look(self) -> None:
        """Serve what the stage has by now, if it is another version, verified, and takes the rows that callers send.

        A version that was refused is loaded again at the next look, and then ever less often: its files may be mended.
        """
        waiting, move = self.waiting, None
        try:
            move = registry.standing(self.project)[self.stage]
            if move == self._refused is not None and time.monotonic() < self._again_at:
                return
            # By digest: a model deleted and made again has its numbers again.
            if move and (move.version, move.digest) != (self.served.release.version, self.served.release.digest):
                self.served = self._prepare(registry.load_model(self.project, self.stage))
                print(f"now serving version {self.served.release.version}", file=sys.stderr, flush=True)
            self.waiting = "" if move else f"stage '{self.stage}' is empty"
            self._refused, self._pause_s = None, 0.0
        except Exception as error:  # noqa: BLE001 - no fault of another version may stop this one
            self.waiting = str(error) or type(error).__name__
            self._again_at = time.monotonic() + self._pause_s
            self._refused, self._pause_s = move, min(2 * self._pause_s + LOOK_S, MAX_PAUSE_S)
        if self.waiting not in ("", waiting):
            print(f"still serving version {self.served.release.version}: {self.waiting}", file=sys.stderr, flush=True)

    def _prepare(self, release: Release) -> Served:
        successor, present = Served(release), self.served.release.version
        report = contracts.compare_contracts(self.served.contract, successor.contract)
        if not report.passed:
            reasons = "; ".join(f"{row.name}: {row.reason}" for row in report.failures)
            raise ServiceError("contract", version=release.version, served=present, reasons=reasons)
        return successor

    @contextlib.contextmanager
    def looking(self, every_s: float) -> Iterator[None]:
        """Look every so many seconds, in a thread of its own."""
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(every_s):
                self.look()

        thread = threading.Thread(target=run, name="follower", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def create_app(release: Release, follower: Follower | None = None) -> FastAPI:
    """Build the service for one release, or for whatever a follower serves at the time.

    Parameters
    ----------
    release : Release
        As ``registry.load_model`` verified it.
    follower : Follower, optional
    """
    app = FastAPI(title=release.name, docs_url=None, redoc_url=None, openapi_url=None)
    first = follower.served if follower else Served(release)

    def now() -> Served:
        return follower.served if follower else first

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        message = str(error) if isinstance(error, MlopsError) else "The service failed; its log says why."
        return JSONResponse({"error": message}, status_code=500, headers=now().headers)

    @app.api_route("/ping", methods=["GET", "HEAD"])
    @app.api_route("/health", methods=["GET", "HEAD"])
    def ping() -> Response:
        return PlainTextResponse("OK", headers=now().headers)

    @app.get("/version")
    def version() -> Response:
        served, waiting = now(), follower.waiting if follower else ""
        facts = {name: getattr(served.release, name) for name in ("name", "version", "stage", "digest")}
        return JSONResponse(facts | ({"waiting": waiting} if waiting else {}), headers=served.headers)

    @app.post("/invocations")
    async def invocations(request: Request) -> Response:
        served, encoding = now(), request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            refused = ServiceError("payload", reason="its Content-Encoding is no 'identity', the only one", forms=FORMS)
            return JSONResponse({"error": str(refused)}, status_code=415, headers=served.headers)
        body = await request.body()
        try:
            frame = read_payload(body)
            split = contracts.split_rows(served.contract, frame, format="json")
        except MlopsError as error:
            return JSONResponse({"error": str(error)}, status_code=400, headers=served.headers)
        if len(split.bad):
            rows = split.bad["rule"].rename_axis("row").reset_index().to_dict(orient="records")
            message = f"{len(rows)} of {len(frame)} rows break the contract. Nothing was scored."
            return JSONResponse({"error": message, "rows": rows[:100]}, status_code=422, headers=served.headers)
        predictions = predict(served.release, split.good, served.scorer)
        return JSONResponse({"predictions": predictions}, headers=served.headers)

    return app


def predict(release: Release, rows: pd.DataFrame, scorer: exact.Scorer | None = None) -> list[Any]:
    """Return what MLflow's own server would: the probabilities of every class, or the predicted numbers.

    Parameters
    ----------
    scorer : Scorer, optional
        Answers instead of the pipeline, with the same bits, where the rows are few enough.
    """
    values = release.task.predict_all(scorer or release.model, rows[release.features])
    if not np.isfinite(values).all():
        raise ServiceError("prediction", version=release.version)
    return list(values.tolist())


def read_payload(body: bytes) -> pd.DataFrame:
    """Read one of MLflow's JSON forms into a DataFrame of shape (n_rows, n_columns), values as they came.

    Raises
    ------
    ServiceError
        Nothing was scored.
    """
    try:
        payload = json.loads(body, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_read_object)
    except (ValueError, RecursionError) as error:
        raise ServiceError("payload", reason=f"the body is not JSON ({error})", forms=FORMS) from error
    if not isinstance(payload, dict):
        raise ServiceError("payload", reason="the body is no JSON object", forms=FORMS)
    given = [form for form in FORMS if form in payload]
    if len(given) != 1 or set(payload) - {*FORMS, "params"}:
        raise ServiceError("payload", reason=f"the body has the keys {sorted(payload)}", forms=FORMS)
    value = payload[given[0]]
    if given[0] == "dataframe_split":
        return _from_split(value)
    return _from_columns(value) if isinstance(value, dict) else _from_records(value)


def raise_for_port(host: str, port: int) -> None:
    """Raise ``ServiceError`` if nothing can listen there: somebody does already, or the host is not this machine's."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServiceError("port", host=host, port=port) from error
        raise ServiceError("host", host=host, port=port, reason=error.strerror or str(error)) from error


def serve(
    release: Release, *, host: str = "127.0.0.1", port: int = 5001, follow: tuple[Project, str] | None = None
) -> None:
    """Serve a release until interrupted; with a project and a stage to follow, whatever that stage has."""
    follower = Follower(*follow, release) if follow else None
    with follower.looking(LOOK_S) if follower else contextlib.nullcontext():
        app = create_app(release, follower)
        if host in LOOPBACK:  # a page of another site cannot ask under a name of its own
            app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
        uvicorn.run(app, host=host, port=port, log_level="warning")


def _from_records(value: Any) -> pd.DataFrame:
    if not isinstance(value, list) or not value or not all(isinstance(row, dict) for row in value):
        raise ServiceError("payload", reason="the rows are no list of objects", forms=FORMS)
    columns = list(value[0])
    if any(set(row) != set(columns) for row in value):
        raise ServiceError("payload", reason="the rows do not all have the same fields", forms=FORMS)
    return pd.DataFrame({column: pd.Series([row[column] for row in value], dtype=object) for column in columns})


def _from_columns(value: dict[str, Any]) -> pd.DataFrame:
    columns = list(value.values())
    if not columns or not all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns) or not columns[0]:
        raise ServiceError("payload", reason="the columns are no lists of one length", forms=FORMS)
    return pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in value.items()})


def _from_split(value: Any) -> pd.DataFrame:
    columns, rows = (value.get(key) for key in ("columns", "data")) if isinstance(value, dict) else (None, None)
    if not isinstance(columns, list) or not isinstance(rows, list) or not rows:
        raise ServiceError("payload", reason="'dataframe_split' has no columns or no data", forms=FORMS)
    if any(not isinstance(row, list) or len(row) != len(columns) for row in rows):
        reason = "a row of 'dataframe_split' has another length than its columns"
        raise ServiceError("payload", reason=reason, forms=FORMS)
    if not all(map(_is_name, columns)) or len(set(columns)) < len(columns):
        reason = "the columns of 'dataframe_split' are no texts, each once"
        raise ServiceError("payload", reason=reason, forms=FORMS)
    return pd.DataFrame(rows, columns=columns, dtype=object)


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("an object names a field twice")
    if not all(map(_is_name, fields)):
        raise ValueError("an object names a field by half a character, a lone surrogate")
    return fields


def _is_name(column: object) -> bool:
    """Return whether a column's name is a text that UTF-8 can hold; answers and logs are to name it."""
    return isinstance(column, str) and not any("\ud800" <= letter <= "\udfff" for letter in column)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON; a missing value is null")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value
