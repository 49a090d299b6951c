"""Imputed genes beside measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata, get_result
from sagefm._docs import fill_docstring
from sagefm._settings import ROWS_AT_A_TIME
from sagefm._types import Floats, Ints
from sagefm.models._vocabulary import hest1k
from sagefm.pl._axes import ORANGE, finish, open_grid, tidy, write_instead
from sagefm.pl._spatial import Slide, draw_gene, get_slides
from sagefm.pp._counts import Counts

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData


@fill_docstring
def imputation(
    adata: AnnData | SpatialData,
    genes: str | Sequence[str],
    *,
    key: str = _keys.IMPUTED,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    spatial_key: str = _keys.SPATIAL,
    cmap: str = "viridis",
    table_key: str = "table",
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool | None = None,
    **kwargs: Any,
) -> list[Axes] | Figure | None:
    """Show measured genes beside their predictions, on the tissue and against each other.

    Both maps of a gene share one color scale, the same for all slides. It ends at the 99th percentile of the measured
    values or of the predicted ones, whichever is larger. The third panel shows the measured value of each spot against
    the prediction, over the intervals, if there are any. For a gene that the slide lacks, it says what to expect.

    Parameters
    ----------
    adata
        Slide, or several, after :func:`sagefm.tl.impute`.
    genes
        Genes that were predicted, by any name that :func:`sagefm.tl.impute` takes.
    {key}
    {library_key}
    {library_id}
    {spatial_key}
    {cmap}
    {table_key}
    {figsize}
    {title}
    {show}
    {save}
    {return_fig}
    {map_options}

    Returns
    -------
    ``None`` if the figure is shown; else the axes, or the figure with ``return_fig=True``. There is a row for each
    gene and slide, with the measured and the predicted log1p counts, and both against each other. Over
    these stand the scores within the slide, from ``uns[key]["reliability_by_slide"]``, and the verdict.

    Raises
    ------
    KeyError
        If a gene was not predicted, or the coordinates are missing.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.impute(adata, ["KRT8"], "sagefm-mini", intervals=0.9)
    >>> axes = sg.pl.imputation(adata, "KRT8", show=False)
    """
    adata = get_anndata(adata, table_key)
    names = [genes] if isinstance(genes, str) else list(genes)
    if not names:
        raise ValueError("genes is empty: name at least one.")
    slides = get_slides(adata, spatial_key, library_key, library_id)
    found = [(name, slide, *_values(adata, name, key)) for name in names for slide in slides]
    rows = open_grid(len(found), 3, (3.9, 3.8), figsize)
    for axes, (name, slide, symbol, measured, predicted) in zip(rows, found, strict=True):
        both = [values for values in (measured, predicted) if values is not None]
        limits = (0.0, max(float(np.percentile(values, 99)) for values in both) or 1.0)
        draw_gene(axes[:2], slide, name, measured, predicted, limits=limits, cmap=cmap, **kwargs)
        if measured is None:
            write_instead(axes[2], _expectation(adata.uns[key], symbol))
        else:
            _scatter(axes[2], adata, key, symbol, slide, measured[slide.rows], predicted[slide.rows])
    return finish([ax for axes in rows for ax in axes], title, show, save, return_fig)


def _expectation(recorded: Mapping[str, Any], symbol: str) -> str:
    """What is known of a gene that can't be compared with anything."""
    prior = recorded.get("prior")
    if prior is None or symbol not in prior.index or not np.isfinite(prior.loc[symbol, "r"]):
        return "nothing is known of\nhow well it is predicted"
    row = prior.loc[symbol]
    return (
        f"on donors left out of training\nr = {row['r']:.2f} ± {row['r_sd']:.2f}, "
        f"beyond depth {row['r_beyond_depth']:.2f}\n({row['n_donors']:.0f} donors, while it was hidden)"
    )


def _scatter(
    ax: Axes, adata: AnnData, key: str, symbol: str, slide: Slide, measured: Floats, predicted: Floats
) -> None:
    """Measured against predicted values of a slide, over the intervals."""
    recorded = adata.uns[key]
    lower, upper = (adata.obsm.get(template.format(key)) for template in (_keys.LOWER, _keys.UPPER))
    has_interval = lower is not None and symbol in lower
    if has_interval:
        level = recorded["intervals"].loc[symbol, "level"]
        ends = [np.minimum(end[symbol].to_numpy(dtype=float)[slide.rows], 1e3) for end in (lower, upper)]
        ax.vlines(predicted, *ends, color="0.88", linewidth=2, zorder=0, label=f"{level:.0%} interval", rasterized=True)
    ax.scatter(predicted, measured, s=8, color=ORANGE, linewidth=0, alpha=0.6, rasterized=True, label="spots")
    top = 1.05 * max(float(measured.max()), float(predicted.max()), 0.5)
    ax.plot([0, top], [0, top], color="0.4", linewidth=0.8)
    ax.set(xlim=(-0.02 * top, top), ylim=(-0.02 * top, top), aspect="equal")
    ax.set(xlabel="predicted log1p counts", ylabel="measured")
    ax.set_title(_scores(recorded, symbol, slide), fontsize="medium")
    if has_interval:
        ax.legend(frameon=False, fontsize="small", loc="upper left")
    tidy(ax)


def _scores(recorded: Mapping[str, Any], symbol: str, slide: Slide) -> str:
    """How well a gene was predicted on a slide, and the verdict, which is that of all slides together."""
    table = recorded.get("reliability")
    if table is None or symbol not in table.index:
        return slide.name
    row = table.loc[symbol]
    verdict = "reliable" if row["reliable"] else "not reliable" if row["testable"] else "too few spots to tell"
    if slide.name:
        verdict += " on all slides together"
        by_slide = recorded.get("reliability_by_slide")
        if by_slide is None or slide.name not in by_slide["slide"].to_numpy():  # groups of another key
            return slide.title(verdict)
        row = by_slide[by_slide["slide"] == slide.name].loc[symbol]
    beyond = f"beyond depth {row['r_beyond_depth']:.2f} of {max(row['attainable_r'], 0):.2f} attainable"
    return slide.title(f"r = {row['r']:.2f}, {beyond}\n({verdict})")


def _values(adata: AnnData, gene: str, key: str) -> tuple[str, Floats | None, Floats]:
    """Symbol, measured log1p counts, None for a gene that the slide lacks, and predicted ones."""
    mend = f"Run {_keys.advise(f'sg.tl.impute(adata, [{gene!r}])', key)} first."
    recorded = adata.uns.get(key)
    if not isinstance(recorded, Mapping) or "params" not in recorded or _keys.GENE_INDEX not in adata.var:
        raise KeyError(f"{key!r} not in adata.uns, or not of sg.tl.impute. {mend}")
    if "reliability" in recorded:
        run, shown = "sg.tl.impute(adata, ...)", ["r", "r_beyond_depth", "attainable_r", "testable", "reliable"]
        get_result(adata, (key, "reliability"), pd.DataFrame, shown, run, may_be_empty=True)
    symbol, columns = find_gene(adata, gene)
    if len(columns) and key in adata.layers:
        predicted = np.asarray(adata.layers[key][:, columns[0]], dtype=float)
        if np.isfinite(predicted).all():
            return symbol, _measured(adata, columns, recorded["params"].get("layer")), predicted
    if not len(columns) and key in adata.obsm:
        for label in (gene, symbol):
            if label in adata.obsm[key]:
                return label, None, adata.obsm[key][label].to_numpy(dtype=float)
    raise KeyError(f"no prediction of {gene!r} under {key!r}. {mend}")


def find_gene(adata: AnnData, gene: str) -> tuple[str, Ints]:
    """Symbol of a gene and the columns that hold it."""
    index = adata.var[_keys.GENE_INDEX].to_numpy()
    found = index[adata.var_names == gene]
    number, symbol = int(found[0]) if len(found) else -1, gene
    # Other names than those of the columns are known for the vocabulary that the package ships.
    if adata.uns.get(_keys.GENES, {}).get("sha256") == hest1k().sha256:
        number = number if number >= 0 else int(hest1k().find([gene])[0])
        symbol = hest1k().symbols[number] if number >= 0 else gene
    return symbol, np.flatnonzero((index == number) & (number >= 0))


def _measured(adata: AnnData, columns: Ints, layer: str | None) -> Floats:
    """log1p counts of one gene, its columns added up as the model reads them."""
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"the layer {layer!r}, which the genes were imputed from, is no longer in adata.layers.")
    index = np.full(adata.n_vars, -1)
    index[columns] = 0
    gene = np.zeros(1, dtype=np.int64)
    return Counts(adata, index, layer).log1p(gene, ROWS_AT_A_TIME).toarray().ravel().astype(float)
