"""Embeddings that need no pretraining, to compare with: PCA of neighborhood means, and MOFA."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from sagefm import _keys
from sagefm._anndata import Run, open_run
from sagefm._docs import fill_docstring
from sagefm._settings import logger, settings
from sagefm._slides import split_libraries
from sagefm._types import Array
from sagefm._utils import check_whole
from sagefm.pp._graph import get_graph
from sagefm.pp._normalize import check_variety, normalize_total, read_counts

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


@fill_docstring
def nichepca_embed(
    adata: AnnData | SpatialData,
    *,
    n_components: int = 30,
    n_top_genes: int | None = None,
    key_added: str = _keys.NICHEPCA,
    layer: str | None = None,
    connectivity_key: str = _keys.GRAPH,
    rng: int = 0,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Embed every spot by PCA of its neighborhood's mean: the plain baseline of spatial embeddings.

    Counts are scaled to a common depth and log1p, averaged over the spot and its neighbors, and reduced.

    Parameters
    ----------
    {adata}
    n_components
        Number of principal components.
    n_top_genes
        Use this many of the most variable genes only; all by default.
    {key_added}
    {layer}
    {connectivity_key}
    {seed}
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``obsm["X_nichepca"]``
        float32, shape (spots, ``n_components``).
    ``uns["X_nichepca"]``
        ``params``, and ``variance_ratio`` of the components.

    Raises
    ------
    KeyError
        If the graph or the layer is missing.
    ValueError
        If the counts are not raw, or there are too few spots or genes for so many components.

    Notes
    -----
    NichePCA (Schaub et al., bioRxiv 2024.09.16.613284).

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=500)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.nichepca_embed(adata, n_components=10)
    >>> adata.obsm["X_nichepca"].shape
    (100, 10)
    """
    import scanpy as sc

    n_components = check_whole("n_components", n_components, 1)
    rng = check_whole("rng", rng, 0)
    run = open_run(adata, "tl.nichepca_embed", key_added, _keys.NICHEPCA, ["obsm"], table_key=table_key, copy=copy)
    around = get_graph(run.adata, connectivity_key) + sparse.identity(run.adata.n_obs, format="csr")
    slide = _normalized(run.adata, layer, n_top_genes, n_components=n_components)
    slide.X = sparse.csr_matrix((around @ slide.X).multiply(1 / around.sum(axis=1)), dtype=np.float32)
    check_variety(slide, n_components, "n_components")
    sc.pp.pca(slide, n_comps=n_components, random_state=rng)
    params = {
        "n_components": n_components,
        "n_top_genes": n_top_genes,
        "layer": layer,
        "connectivity_key": connectivity_key,
        "seed": rng,
    }
    return _commit(run, slide.obsm["X_pca"], params, variance_ratio=np.asarray(slide.uns["pca"]["variance_ratio"]))


@fill_docstring
def mofa_embed(
    adata: AnnData | SpatialData,
    *,
    n_factors: int = 10,
    n_top_genes: int | None = 2_000,
    library_key: str | None = None,
    n_iterations: int = 1_000,
    key_added: str = _keys.MOFA,
    layer: str | None = None,
    rng: int = 0,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Embed every spot by MOFA, the factor model that the paper compares with. It sees no neighbors.

    Counts are scaled to a common depth and log1p; muon and mofapy2 fit the model.

    Parameters
    ----------
    adata
        Slide with raw counts, or several.
    n_factors
        Number of factors.
    n_top_genes
        Use this many of the most variable genes, which bounds the memory (8 bytes a value, several copies); None
        takes all.
    library_key
        Column of ``obs`` with the slide of each spot. MOFA centers each slide separately. By default, all spots are one
        group.
    n_iterations
        Most iterations; fewer if it converges.
    {key_added}
    {layer}
    {seed}
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``obsm["X_mofa"]``
        float32, shape (spots, ``n_factors``).
    ``uns["X_mofa"]``
        ``params``, and ``weights``, a ``DataFrame`` of shape (genes used, factors).

    Raises
    ------
    KeyError
        If the layer or ``library_key`` is missing.
    ValueError
        If the counts are not raw, a spot has no slide, or there are too few spots or genes for so many
        factors.

    Notes
    -----
    MOFA+ (Argelaguet et al. 2020, 10.1186/s13059-020-02015-1); the baseline of SAGE-FM (arXiv 2601.15504), Fig. 2.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=8, n_cols=8, n_genes=300)
    >>> sg.tl.mofa_embed(adata, n_factors=3, n_top_genes=50, n_iterations=5)
    >>> adata.obsm["X_mofa"].shape
    (64, 3)
    """
    import muon
    import pandas as pd

    n_factors = check_whole("n_factors", n_factors, 1)
    n_iterations = check_whole("n_iterations", n_iterations, 2)
    rng = check_whole("rng", rng, 0)
    run = open_run(adata, "tl.mofa_embed", key_added, _keys.MOFA, ["obsm"], table_key=table_key, copy=copy)
    libraries = split_libraries(run.adata, library_key)
    slide = _normalized(run.adata, layer, n_top_genes, n_factors=n_factors)
    check_variety(slide, n_factors, "n_factors")
    slide.obs["group"] = libraries.labels
    logger.info("Fitting MOFA to %d spots and %d genes.", slide.n_obs, slide.n_vars)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(_Iterations(n_iterations)):
        muon.tl.mofa(
            slide,
            groups_label=None if library_key is None else "group",
            use_var=None,
            n_factors=n_factors,
            n_iterations=n_iterations,
            # mofapy2 draws a seed of its own for 0.
            seed=rng + 1,
            save_data=False,
            outfile=str(Path(folder) / "mofa.hdf5"),
            quiet=False,
        )
    factors = [f"factor{i + 1}" for i in range(n_factors)]
    weights = pd.DataFrame(np.asarray(slide.varm["LFs"])[:, :n_factors], index=slide.var_names, columns=factors)
    params = {
        "n_factors": n_factors,
        "n_top_genes": n_top_genes,
        "layer": layer,
        "library_key": library_key,
        "n_iterations": n_iterations,
        "seed": rng,
    }
    return _commit(run, slide.obsm["X_mofa"], params, weights=weights)


def _normalized(adata: AnnData, layer: str | None, n_top_genes: int | None, **n_dimensions: int) -> AnnData:
    """Counts at a common depth, log1p, of the most variable genes; everything checked."""
    import scanpy as sc

    if n_top_genes is not None:
        check_whole("n_top_genes", n_top_genes, 2)
    slide = read_counts(adata, layer)
    if not slide.X.count_nonzero():
        raise ValueError("the slide holds no counts.")
    normalize_total(slide)
    sc.pp.log1p(slide)
    if n_top_genes is not None and n_top_genes < slide.n_vars:
        sc.pp.highly_variable_genes(slide, n_top_genes=n_top_genes)
        slide = slide[:, slide.var["highly_variable"]].copy()
    for name, n in n_dimensions.items():
        if min(slide.shape) <= n:
            raise ValueError(f"{slide.n_obs} spots and {slide.n_vars} genes are too few for {name}={n}.")
    return slide


def _commit(run: Run, points: Array, params: dict[str, Any], **recorded: Any) -> AnnData | None:
    """Write the embedding."""
    embedding = np.asarray(points, dtype=np.float32)
    logger.info("Embedded %d spots; wrote obsm['%s'] %s.", len(embedding), run.key, embedding.shape)
    return run.commit({("obsm", run.key): embedding}, params, **recorded)


class _Iterations(io.TextIOBase):
    """Takes what mofapy2 prints, and shows its iterations as a progress bar."""

    def __init__(self, total: int) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(total=total, desc="MOFA", delay=1, leave=False, disable=not settings.progress_bars)

    def write(self, text: str) -> int:
        self._bar.update(text.count("Iteration "))
        return len(text)

    def __del__(self) -> None:
        self._bar.close()
