"""A model scores the table that it was trained on with the same bits everywhere, or it is refused when logged."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from model_types import PAIRS, Trained, project_of, train
from rounds import rounds

from mlops_lib import contracts, data, registry
from mlops_lib.programs import batch, service
from mlops_lib.project import Project

SOME = [pair for number, pair in enumerate(PAIRS) if number % rounds(5, 1) == 0]


def as_json(value: Any) -> Any:
    """Return a cell as a caller would send it."""
    if value is None or value is pd.NaT or pd.isna(value):
        return None
    if isinstance(value, dt.date):
        return value.isoformat()
    return value.item() if isinstance(value, np.generic) else value


@pytest.mark.parametrize(("column", "estimator"), SOME)
def test_a_model_scores_its_table_the_same_everywhere(column: str, estimator: str, project: Project) -> None:
    project = project_of(project)
    trained = train(project, column, estimator)
    if isinstance(trained, str):
        assert "Nothing was" in trained or "No contract was learnt" in trained
        assert not registry.list_versions(project)
        return
    release = registry.load_model(project, trained.version)
    path, output = data.write_table(trained.rows, project.root / "table.parquet"), project.root / "scored.parquet"
    assert batch.score_table(project, trained.version, path, output).n_scored == len(trained.rows)
    in_batch = pd.read_parquet(output).sort_values("thing_id")["score"]
    np.testing.assert_array_equal(in_batch, trained.scores, "batch")
    rows = data.read_table(path)
    np.testing.assert_array_equal(release.predict(rows), trained.scores, "notebook")
    good = contracts.split_rows(contracts.Contract.from_dict(release.files.contract), rows).good
    np.testing.assert_array_equal(release.predict(good), trained.scores, "notebook, by the contract")
    sent = [{name: as_json(cell) for name, cell in row.items()} for row in trained.rows.to_dict("records")]
    with TestClient(service.create_app(release)) as client:
        answer = client.post("/invocations", json={"dataframe_records": sent})
    assert answer.status_code == 200, answer.text[:500]
    in_service = [of_class[1] for of_class in answer.json()["predictions"]]
    np.testing.assert_array_equal(in_service, trained.scores, "service")


def test_models_that_score_are_many_and_those_that_are_refused_say_why(project: Project) -> None:
    """A matrix whose models were all refused would pass the test above."""
    refused = train(project_of(project), "booleans and None", "one-hot, logistic")
    assert isinstance(refused, str)
    assert "does not take rows once the contract has read them" in refused
    assert isinstance(train(project_of(project), "boolean with gaps", "encoded, logistic"), Trained)
