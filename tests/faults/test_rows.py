"""Cases 22 to 24: rows with wrong values, valid rows in another form, tables whose units or categories changed.

The control is MLflow's own enforcement of a signature: ``pyfunc.predict`` for tables and the application behind
``mlflow models serve`` for JSON, with a model that answers what it was given.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc import scoring_server
from mlflow.types import ColSpec, Schema

from mlops_lib import contracts, data
from mlops_lib.errors import ServiceError
from mlops_lib.programs import service

ROW = {"x": 0.5, "k": 3, "flag": True, "cat": "a", "ts": "2024-01-01T12:00:00"}
CONTRACT = contracts.Contract(
    (
        contracts.Column("x", "number"),
        contracts.Column("k", "integer"),
        contracts.Column("flag", "boolean"),
        contracts.Column("cat", "string", categories=("a", "b")),
        contracts.Column("ts", "datetime"),
    )
)


class Echo(mlflow.pyfunc.PythonModel):  # type: ignore[misc,name-defined]
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        return model_input


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return MLflow's own model with a signature, loaded."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    kinds = {"x": "double", "k": "long", "flag": "boolean", "cat": "string", "ts": "datetime"}
    signature = ModelSignature(Schema([ColSpec(kind, name) for name, kind in kinds.items()]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*An input example was not provided")  # the signature is explicit
        mlflow.pyfunc.save_model(folder, python_model=Echo(), signature=signature, pip_requirements=[])
    return mlflow.pyfunc.load_model(str(folder))


@pytest.fixture(scope="module")
def served(plain: Any) -> Callable[[str], Any]:
    """Return what asks the application of ``mlflow models serve`` for the row that its model is given."""
    client = TestClient(scoring_server.init(plain))

    def ask(body: str) -> Any:
        answer = client.post("/invocations", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200, answer.text
        return answer.json()["predictions"][-1]

    return ask


def judge(body: str) -> str:
    """Return the rule that our service's own reading says a body breaks."""
    try:
        split = contracts.split_rows(CONTRACT, service.read_payload(body.encode()), format="json")
    except ServiceError:
        return "payload"
    return str(split.bad["rule"].iloc[-1]) if len(split.bad) else ""


def body_of(*rows: dict[str, Any]) -> str:
    return json.dumps({"dataframe_records": rows})


WRONG = [  # what is sent, what MLflow's model is given, the rule that it breaks here
    ({"k": 1.5}, {"k": 1}, "k.kind"),
    ({"k": "3"}, {"k": 3}, "k.kind"),
    ({"k": 2**63}, {"k": -(2**63)}, "k.kind"),
    ({"flag": "false"}, {"flag": True}, "flag.kind"),
    ({"x": "1.5"}, {"x": 1.5}, "x.kind"),
    ({"cat": 5}, {"cat": 5}, "cat.kind"),
    ({"ts": 1704067200}, {"ts": "1970-01-01T00:00:01.704067"}, "ts.kind"),
    ({"ts": "13/12/2024"}, {"ts": "2024-12-13T00:00:00"}, "ts.kind"),
]


@pytest.mark.filterwarnings("ignore:Parsing dates in")  # MLflow's own guess at 13/12/2024
@pytest.mark.parametrize(("change", "given", "rule"), WRONG, ids=str)
def test_a_wrong_value_reaches_the_model_through_mlflow_and_is_refused_here(
    served: Callable[[str], Any],
    change: dict[str, Any],
    given: dict[str, Any],
    rule: str,
    record: Callable[..., None],
) -> None:
    body = body_of({**ROW, **change})
    ((name, value),) = given.items()
    found = served(body)[name]
    assert str(found).startswith(str(value)), found
    assert judge(body_of(ROW)) == ""
    assert judge(body) == rule
    record(
        22,
        plain='served: 1.5 becomes 1, "false" True, 2**63 negative, an epoch 1970, without a word',
        ours="each is refused by row and rule; the same table of inputs goes through every path",
    )


def test_a_ragged_or_repeated_record_is_filled_by_mlflow_and_refused_here(
    served: Callable[[str], Any], record: Callable[..., None]
) -> None:
    ragged = body_of(ROW, {name: value for name, value in ROW.items() if name != "cat"})
    assert pd.isna(served(ragged)["cat"])
    assert judge(ragged) == "payload"
    repeated = body_of(ROW).replace('"x": 0.5', '"x": 0.5, "x": 9.0')
    assert served(repeated)["x"] == 9.0
    assert judge(repeated) == "payload"
    record(22, plain="served: a missing field is filled, of a repeated one the last wins")


def table(**change: Any) -> pd.DataFrame:
    return pd.DataFrame({**{n: [v] for n, v in ROW.items()}, "ts": [pd.Timestamp(ROW["ts"])], **change})


@pytest.mark.parametrize(
    "frame",
    [table(x=pd.Series([1], dtype="Int64")), table(cat=pd.Series(["a"], dtype="category"))],
    ids=["nullable integers", "categories"],
)
def test_valid_rows_in_another_form_are_refused_by_mlflow_and_taken_here(
    plain: Any, frame: pd.DataFrame, record: Callable[..., None]
) -> None:
    assert len(plain.predict(table())) == 1
    with pytest.raises(MlflowException, match="Failed to enforce schema"):
        plain.predict(frame)
    split = contracts.split_rows(CONTRACT, frame)
    assert split.bad.empty
    assert split.good["x"].tolist() == [float(frame["x"].iloc[0])]
    assert split.good["cat"].tolist() == ["a"]
    record(
        23,
        plain="nullable integers in a column of floats, and categories, are refused",
        ours="taken, whole numbers up to 2**53",
    )


def test_dates_in_a_csv_are_read_by_the_contract(plain: Any, tmp_path: Path, record: Callable[..., None]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("x,k,flag,cat,ts\n1,3,true,a,2024-01-01T12:00:00\n1,3,true,a,13/12/2024\n", encoding="utf-8")
    csv = {"content": path.read_bytes(), "headers": {"Content-Type": "text/csv"}}
    assert TestClient(scoring_server.init(plain)).post("/invocations", **csv).status_code == 400
    split = contracts.split_batch(CONTRACT, next(data.read_batches(path)))
    assert split.good["ts"].tolist() == [pd.Timestamp("2024-01-01 12:00")]
    assert split.bad["reason"].tolist() == ["ts is '13/12/2024', needs a time without zone such as 2024-01-31T17:05:00"]
    record(23, plain="a CSV with times is refused whole", ours="ISO 8601 is read, another spelling is that row's fault")


def test_another_unit_unseen_categories_and_empty_columns_pass_mlflow_and_stop_a_batch_here(
    plain: Any, record: Callable[..., None]
) -> None:
    rng = np.random.default_rng(0)
    train = pd.concat([table()] * 200, ignore_index=True).assign(x=rng.gamma(4, 2, 200), k=rng.integers(1, 300, 200))
    learnt = contracts.infer_contract(train, features=list(ROW), keys=[])
    assert contracts.check_table(learnt, train).passed
    changed = {
        "x.scale": train.assign(x=train["x"] * 10),
        "k.scale": train.assign(k=train["k"] * 10),
        "cat.unseen_share": train.assign(cat="z"),
        "x.missing_share": train.assign(x=np.nan),
    }
    for name, frame in changed.items():
        assert len(plain.predict(frame)) == 200
        assert name in {row.name for row in contracts.check_table(learnt, frame).failures}
        warned = learnt.with_policy(name, "warn")
        assert name not in {row.name for row in contracts.check_table(warned, frame).failures}
    record(
        24,
        plain="×10, unseen categories and a column without values pass",
        ours="the report stops the batch, or warns if the project says so",
    )
