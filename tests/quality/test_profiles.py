import json

import numpy as np
import pandas as pd
import pytest
from refusals import raises
from samples import COLUMNS, drift_of, table

from mlops_lib import errors, quality
from mlops_lib.quality import Profile


def test_profile_survives_json_unchanged():
    profile = quality.build_profile(table(5000), columns=COLUMNS)
    assert Profile.from_dict(json.loads(json.dumps(profile.to_dict(), allow_nan=False))) == profile


def test_shares_of_every_column_add_up_with_the_missing_ones():
    profile = quality.build_profile(table(5000), columns=COLUMNS)
    assert profile.n_rows == 5000
    for column in profile.columns.values():
        assert sum(column.shares) + column.missing_share == pytest.approx(1)
    assert profile.columns["pressure"].missing_share == pytest.approx(0.1, abs=0.02)


def test_numeric_bins_hold_about_equal_shares_and_nothing_is_out_of_range():
    shares = quality.build_profile(table(5000), columns=["temp"]).columns["temp"].shares
    assert (shares[0], shares[-1]) == (0, 0)
    assert shares[1:-1] == pytest.approx([0.1] * 10, abs=0.001)


def test_the_table_it_was_built_from_has_no_drift():
    frame = table(5000, huge=np.r_[np.inf, -np.inf, np.arange(4998.0)], empty=None)
    profile = quality.build_profile(frame, columns=[*COLUMNS, "huge"])
    drift = quality.compute_drift(profile, frame)
    assert (drift["psi"] == 0).all()
    assert (drift["unseen_share"] == 0).all()


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "int8", "float32", "boolean", "bool"])
def test_every_numeric_dtype_is_read_the_same(dtype):
    reference, current = pd.Series([0, 1, 1, 0]).astype(dtype), pd.Series([1, 1, 1, 0]).astype(dtype)
    assert drift_of(reference, current)["psi"] == drift_of([0, 1, 1, 0], [1, 1, 1, 0])["psi"]


def test_text_category_and_object_are_read_the_same():
    reference, current = ["a", "b", "b", None], ["a", "a", "c", None]
    expected = drift_of(pd.Series(reference, dtype="str"), pd.Series(current, dtype="str"))
    for dtype in ("object", "category"):
        assert drift_of(pd.Series(reference, dtype=dtype), pd.Series(current, dtype=dtype)).equals(expected)
    assert expected["unseen_share"] == 0.25


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            pd.to_datetime(["2013-01-01"]).as_unit("ns"),
            "Column 'x' cannot be profiled: it holds datetime64[ns], and numbers, booleans, texts and categories are "
            "known; derive one, such as the hour or weekday. No profile was built.",
        ),
        (
            [f"N{i}" for i in range(1001)],
            "Column 'x' cannot be profiled: it has 1001 distinct texts, at most 1000 are known; group them or leave it "
            "out. No profile was built.",
        ),
    ],
)
def test_columns_that_no_profile_can_describe_are_refused(values, text):
    with raises(errors.QualityError, "profile") as caught:
        quality.build_profile(pd.DataFrame({"x": values}), columns=["x"])
    assert str(caught.value) == text


def test_a_profile_needs_rows_and_the_columns_it_names():
    with pytest.raises(errors.QualityError, match="There are no rows in the reference data"):
        quality.build_profile(pd.DataFrame({"x": []}), columns=["x"])
    with raises(errors.QualityError, "columns") as caught:
        quality.build_profile(pd.DataFrame({"temp": [1]}), columns=["tmp"])
    assert str(caught.value) == (
        "The reference data lack tmp. They have temp. Did you mean 'temp'? Nothing was computed."
    )
