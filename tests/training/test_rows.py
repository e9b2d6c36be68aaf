"""Data enters block by block: nothing is lost between the blocks, and each is checked."""

import numpy as np
import pytest

from deepprop.training import rows
from deepprop.training.rows import rows_of

FLOAT32 = np.dtype(np.float32)
# With BLOCK = 15 there are five blocks, and the last one is short.
X = np.random.default_rng(0).standard_normal((3, 22))
FORMS = {
    "rows": lambda P: np.ascontiguousarray(P.T).T,
    "columns": np.ascontiguousarray,
    "float32": lambda P: P.astype(np.float32),
    "every second": lambda P: np.repeat(P, 2, axis=1)[:, ::2],
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 15)


@pytest.mark.parametrize("form", FORMS)
def test_blocks_hold_every_row_and_rows_of_0_follow(form):
    entered, values = rows_of(FORMS[form](X), FLOAT32, 24, look=True)
    np.testing.assert_array_equal(entered[:22], X.T.astype(np.float32))
    np.testing.assert_array_equal(entered[22:], 0)
    assert values.finite
    assert (values.least, values.largest) == (entered[:22].min(), entered[:22].max())


@pytest.mark.parametrize("i", [0, 7, 21])
@pytest.mark.parametrize("wrong", [np.nan, -np.inf, 1e300])
def test_a_number_that_is_not_finite_is_found_in_any_block(i, wrong):
    P = X.copy()
    P[1, i] = wrong
    assert not rows_of(P, FLOAT32, 22, look=False)[1].finite


def test_all_blocks_are_copied_if_a_sum_is_out_of_range():
    P = np.full((3, 3000), 3e38, np.float32)  # finite numbers, so the caller uses the rows
    entered, values = rows_of(P, FLOAT32, 3000, look=False)
    assert not values.finite
    np.testing.assert_array_equal(entered, P.T)
