"""Figures of imputed genes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sagefm import _keys
from sagefm._utils import get_table
from sagefm.models._vocabulary import hest1k
from sagefm.pl._spatial import draw_spots, finish, get_coordinates

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure
    from spatialdata import SpatialData


def impute(
    adata: AnnData | SpatialData,
    genes: str | Sequence[str],
    *,
    key: str = _keys.IMPUTED,
    spatial_key: str = _keys.SPATIAL,
    cmap: str = "viridis",
    table_key: str = "table",
    show: bool = True,
    save: str | Path | None = None,
) -> Figure | None:
    """Show measured genes beside their predictions on the tissue, and absent genes by their prediction alone.

    Both panels of a gene share one colour scale, up to the 99th percentile of the measured values or of the
    predicted ones, whichever is larger.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.impute`.
    genes
        Genes that were predicted, by any name that :func:`sagefm.tl.impute` takes.
    key
        Where :func:`sagefm.tl.impute` wrote, its ``key_added``.
    spatial_key
        Coordinates in ``obsm``.
    cmap
        Colour map.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    show
        Show the figure; else return it.
    save
        File to write the figure to.

    Returns
    -------
    ``None``, or the figure: one row per gene, measured and predicted log1p counts side by side.

    Raises
    ------
    KeyError
        If a gene was not predicted, or the coordinates are missing.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.impute(adata, ["KRT8"], "sagefm-mini")
    >>> figure = sg.pl.impute(adata, "KRT8", show=False)
    """
    import matplotlib.pyplot as plt

    adata = get_table(adata, table_key)
    names = [genes] if isinstance(genes, str) else list(genes)
    if not names:
        raise ValueError("genes is empty: name at least one.")
    coordinates = get_coordinates(adata, spatial_key)
    panels = [(name, *_values(adata, name, key)) for name in names]

    figure, axes = plt.subplots(len(names), 2, figsize=(9, 3.8 * len(names)), squeeze=False, layout="constrained")
    for row, (name, measured, predicted) in zip(axes, panels, strict=True):
        both = [values for values in (measured, predicted) if values is not None]
        top = max(float(np.percentile(values, 99)) for values in both) or 1.0
        draw = partial(draw_spots, label="log1p counts", vmin=0.0, vmax=top, cmap=cmap)
        if measured is None:
            row[0].text(0.5, 0.5, f"{name} was not measured", ha="center", va="center")
            row[0].axis("off")
        else:
            draw(row[0], coordinates, measured, title=f"{name}, measured")
        draw(row[1], coordinates, predicted, title=f"{name}, predicted")
    return finish(figure, show, save)


def _values(adata: AnnData, gene: str, key: str) -> tuple[NDArray[np.float64] | None, NDArray[np.float64]]:
    """Measured log1p counts, None for a gene that the slide lacks, and predicted ones."""
    mend = f"Run sg.tl.impute(adata, [{gene!r}]) first."
    if key not in adata.uns or _keys.GENE_INDEX not in adata.var:
        raise KeyError(f"{key!r} not in adata.uns. {mend}")
    index = adata.var[_keys.GENE_INDEX].to_numpy()
    found = index[adata.var_names == gene]
    number = int(found[0] if len(found) and found[0] >= 0 else hest1k().find([gene])[0])
    columns = np.flatnonzero((index == number) & (number >= 0))
    if len(columns) and key in adata.layers:
        predicted = np.asarray(adata.layers[key][:, columns[0]], dtype=float)
        if np.isfinite(predicted).all():
            return _measured(adata, columns, adata.uns[key]["params"].get("layer")), predicted
    if not len(columns) and key in adata.obsm:
        for label in (gene, hest1k().symbols[number] if number >= 0 else gene):
            if label in adata.obsm[key]:
                return None, adata.obsm[key][label].to_numpy(dtype=float)
    raise KeyError(f"no prediction of {gene!r} under {key!r}. {mend}")


def _measured(adata: AnnData, columns: NDArray[np.int64], layer: str | None) -> NDArray[np.float64]:
    """log1p counts of one gene, its columns added up as the model reads them."""
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"the layer {layer!r}, which the genes were imputed from, is no longer in adata.layers.")
    counts = (adata.X if layer is None else adata.layers[layer])[:, columns]
    if hasattr(counts, "compute"):
        counts = counts.compute()
    counts = counts.toarray() if sparse.issparse(counts) else np.asarray(counts)
    return np.log1p(counts.sum(axis=1, dtype=float))
