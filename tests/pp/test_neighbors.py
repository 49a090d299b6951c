import numpy as np
import pytest

from sagefm.pp._neighbors import lattice_of


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (lambda i, j: (i, j), "square"),
        (lambda i, j: (i + 0.5 * (j % 2), j * np.sqrt(3) / 2), "hexagonal"),
        (lambda i, j: tuple(np.random.default_rng((i, j)).random(2) * 20), "irregular"),
    ],
)
def test_lattices(points, expected):
    from sklearn.neighbors import NearestNeighbors

    x = np.array([points(i, j) for i in range(20) for j in range(20)], dtype=float)
    distances = NearestNeighbors(n_neighbors=7).fit(x).kneighbors(x)[0][:, 1:]
    assert lattice_of(distances)[0] == expected
