"""Several representations as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sagefm import _keys
from sagefm._anndata import open_run
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._slides import find_libraries
from sagefm.tl._points import get_points, standardize

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


@fill_docstring
def join_representations(
    adata: AnnData | SpatialData,
    use_reps: Sequence[str] = (_keys.EMBEDDING, _keys.HISTOLOGY_EMBEDDING),
    *,
    library_key: str | None = None,
    key_added: str = _keys.JOINED,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Put representations side by side, each scaled so that they weigh the same.

    Parameters
    ----------
    adata
        Slide or slides with the representations.
    use_reps
        Two or more representations in ``obsm``.
    library_key
        Column of ``obs`` with the slide of each spot. Every dimension is standardized within its slide. By default, the
        ``library_key`` of :func:`sagefm.pp.neighborhood_graph`.
    {key_added}
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``obsm["X_joined"]``
        float32, shape (spots, sum of dimensions): every dimension standardised and divided by the root of the number
        of its representation's dimensions, so that mean squared distances are the same in each.
    ``uns["X_joined"]``
        ``params``.

    Raises
    ------
    KeyError
        If a representation or the column is missing.
    TypeError
        If ``use_reps`` is a single name.
    ValueError
        If there are fewer than two, one is named twice, or one would be overwritten.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=6, n_cols=6, n_genes=8000, image=True)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> sg.pp.histology_patches(adata, size=64)
    >>> sg.tl.histology_embed(adata)
    >>> sg.tl.join_representations(adata)
    >>> adata.obsm["X_joined"].shape
    (36, 247)
    """
    if isinstance(use_reps, str):
        raise TypeError(f"use_reps={use_reps!r} has to be a list of names, two or more.")
    names = list(use_reps)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"use_reps={names} has to name two representations or more, each once.")
    if key_added in names:
        raise ValueError(f"key_added={key_added!r} would overwrite what is joined. Choose another one.")
    run = open_run(adata, "tl.join_representations", key_added, _keys.JOINED, ["obsm"], table_key=table_key, copy=copy)
    slides = find_libraries(run.adata, library_key)
    parts = []
    for name in names:
        points = standardize(get_points(run.adata, name), slides.codes)
        parts.append(points / np.sqrt(points.shape[1]).astype(np.float32))
    joined = np.hstack(parts)
    logger.info("Joined %s; wrote obsm['%s'] %s.", " and ".join(names), key_added, joined.shape)
    return run.commit({("obsm", key_added): joined}, {"use_reps": names, "library_key": slides.key})
