"""Spots in two dimensions, by representation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sagefm import _keys
from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._utils import check_whole, shorten
from sagefm.pl._axes import finish, open_grid

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData

N_COMPONENTS = 50  # wider representations are reduced first, as is usual before t-SNE
PERPLEXITY = 30


@fill_docstring
def tsne(
    adata: AnnData | SpatialData,
    use_reps: str | Sequence[str] = _keys.EMBEDDING,
    color: str | Sequence[str] | None = None,
    *,
    n_spots: int = 4_000,
    rng: int = 0,
    table_key: str = "table",
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
) -> list[Axes] | Figure | None:
    """Show representations side by side by t-SNE, a row for each, a column for each color.

    Parameters
    ----------
    adata
        Slides with the representations, side by side.
    use_reps
        Representations in ``obsm``, one or several.
    color
        Columns of ``obs`` to color by, such as the tissue and the slide.
    n_spots
        Spots to show, drawn at random where there are more. All panels show the same ones.
    {seed}
    {table_key}
    {figsize}
    {title}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, row by row, or the figure with ``return_fig=True``. Nothing is
    written to ``adata``; :func:`scanpy.tl.tsne` does that, of one representation.

    Raises
    ------
    KeyError
        If there is no such representation or column.
    ValueError
        If there are fewer than ten spots, or a representation isn't finite.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 2d. Representations of over 50 dimensions are reduced to 50 by PCA first.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.sage_embed(adata, "sagefm-mini")
    >>> axes = sg.pl.tsne(adata, "X_sage", "domain", show=False)
    """
    import scanpy as sc
    from anndata import AnnData

    adata = get_anndata(adata, table_key)
    reps, colors = ([use_reps] if isinstance(use_reps, str) else list(use_reps)), _as_list(color)
    for where, names in (("obsm", reps), ("obs", colors)):
        if unknown := [name for name in names if name is not None and name not in getattr(adata, where)]:
            raise KeyError(f"no {shorten(unknown)} in adata.{where}; it has {shorten(getattr(adata, where).keys())}.")
    n_spots, seed = check_whole("n_spots", n_spots, 10), check_whole("rng", rng, 0)
    if adata.n_obs < 10:
        raise ValueError(f"t-SNE needs ten spots or more; adata has {adata.n_obs}.")
    spots = np.sort(np.random.default_rng(seed).permutation(adata.n_obs)[:n_spots])
    drawn = AnnData(obs=adata.obs.iloc[spots].copy())
    drawn.uns = {f"{name}_colors": adata.uns[f"{name}_colors"] for name in colors if f"{name}_colors" in adata.uns}
    grid = open_grid(len(reps), len(colors), (4.6, 3.6), figsize)
    for rep, row in zip(reps, grid, strict=True):
        drawn.obsm["X"] = _reduced(np.asarray(adata.obsm[rep])[spots], rep, seed)
        n, options = len(spots), {"use_rep": "X", "random_state": seed}
        # scanpy's own learning rate throws few spots apart; scikit-learn's goes with their number.
        sc.tl.tsne(drawn, perplexity=min(PERPLEXITY, (n - 1) / 3), learning_rate=max(n / 48, 50), **options)
        for name, ax in zip(colors, row, strict=True):
            sc.pl.tsne(drawn, color=name, ax=ax, show=False, frameon=False, title="")
            ax.set_title(rep if name is None else f"{rep}: {name}", fontsize="medium")
    return finish([ax for row in grid for ax in row], title, show, save, return_fig)


def _as_list(color: str | Sequence[str] | None) -> list[str | None]:
    """Colors, one panel each; without any, one panel."""
    return [color] if color is None or isinstance(color, str) else list(color)


def _reduced(points: NDArray[np.float32], rep: str, seed: int) -> NDArray[np.float32]:
    """Points in at most 50 dimensions."""
    from sklearn.decomposition import PCA

    if not np.isfinite(points).all():
        raise ValueError(f"obsm[{rep!r}] has missing values; leave the spots without one out.")
    if points.shape[1] <= N_COMPONENTS:
        return points
    found: NDArray[np.float32] = PCA(min(N_COMPONENTS, len(points)), random_state=seed).fit_transform(points)
    return found
