"""What is interpolated from visible patches."""

import numpy as np
import pytest

from brainfm_lib.analysis.reconstruction import interpolate_residual

PATCH = 2


def test_a_linear_field_is_interpolated_as_it_is() -> None:
    grid = (3, 3, 4)
    places = np.stack(np.unravel_index(np.arange(36), grid), axis=1)
    field = (places + 0.5) * PATCH - 0.5
    visible = np.setdiff1d(np.arange(36), [13, 22])
    found = interpolate_residual(visible, (field[visible] @ [[1.0], [2.0], [-1.0]]) + 3, grid, PATCH)
    d, h, w = (np.arange(n * PATCH, dtype=float) for n in grid)
    truth = d[:, None, None] + 2 * h[:, None] - w + 3
    inside = (slice(1, -1),) * 3  # beyond the outermost centres the nearest counts
    np.testing.assert_allclose(found[..., 0][inside], truth[inside], atol=1e-4)


@pytest.mark.parametrize(
    "plane",
    [
        lambda p: p[:, 0] == 1,
        lambda p: p[:, 0] == p[:, 1],  # oblique
        lambda p: p.sum(1) == 3,
        lambda p: (p[:, 0] == p[:, 1]) & (p[:, 1] == p[:, 2]),  # a line
    ],
)
def test_visible_patches_in_one_plane_are_no_error(plane) -> None:
    grid = (4, 4, 4)
    visible = np.flatnonzero(plane(np.stack(np.unravel_index(np.arange(64), grid), axis=1)))
    residual = np.arange(len(visible), dtype=float)[:, None]
    found = interpolate_residual(visible, residual, grid, PATCH)
    assert found.shape == (8, 8, 8, 1) and set(np.unique(found)) <= set(residual.ravel())
