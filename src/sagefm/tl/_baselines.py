"""Embeddings that need no pretraining, to compare with: PCA of neighbourhood means, and MOFA."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sagefm import _keys
from sagefm._anndata import check_free, get_anndata
from sagefm._settings import logger, settings
from sagefm._utils import check_key, check_whole
from sagefm.pp._counts import Counts
from sagefm.pp._graph import get_graph
from sagefm.pp._normalize import check_variety, normalize_total

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

BATCH_SIZE = 2_048


def nichepca_embed(
    adata: AnnData | SpatialData,
    *,
    n_components: int = 30,
    n_top_genes: int | None = None,
    key_added: str = _keys.NICHEPCA,
    layer: str | None = None,
    connectivity_key: str = _keys.GRAPH,
    seed: int = 0,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Embed every spot by PCA of its neighbourhood's mean: the plain baseline of spatial embeddings.

    Counts are scaled to a common depth and log1p, averaged over the spot and its neighbours, and reduced.

    Parameters
    ----------
    adata
        Slide with raw counts and the graph of :func:`sagefm.pp.neighborhood_graph`.
    n_components
        Number of principal components.
    n_top_genes
        Use this many of the most variable genes only; all by default.
    key_added
        Where the embedding goes in ``obsm``.
    layer
        Layer with the raw counts; ``X`` by default.
    connectivity_key
        Graph in ``obsp``; only its pattern is read.
    seed
        Seed of the PCA.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    copy
        Return a copy instead of writing in place.

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
        If the counts are no raw counts, or there are too few spots or genes for so many components.

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
    check_whole("seed", seed, 0)
    adata = get_anndata(adata, table_key, copy=copy)
    check_free(adata, key_added, _keys.NICHEPCA, ["obsm"], "tl.nichepca_embed")
    graph = get_graph(adata, connectivity_key)
    slide = _normalized(adata, layer, n_top_genes)
    if min(slide.shape) <= n_components:
        raise ValueError(f"{slide.n_obs} spots and {slide.n_vars} genes are too few for n_components={n_components}.")
    graph.data[:] = 1
    around = graph + sparse.identity(adata.n_obs, format="csr")
    slide.X = sparse.csr_matrix((around @ slide.X).multiply(1 / around.sum(axis=1)), dtype=np.float32)
    check_variety(slide, n_components, "n_components")
    sc.pp.pca(slide, n_comps=n_components, random_state=seed)
    params = {"n_components": n_components, "connectivity_key": connectivity_key, "seed": seed}
    found = {"variance_ratio": np.asarray(slide.uns["pca"]["variance_ratio"])}
    return _write(adata, slide, "X_pca", key_added, "tl.nichepca_embed", params, layer, n_top_genes, found, copy=copy)


def mofa_embed(
    adata: AnnData | SpatialData,
    *,
    n_factors: int = 10,
    n_top_genes: int | None = 2_000,
    library_key: str | None = None,
    n_iterations: int = 1_000,
    key_added: str = _keys.MOFA,
    layer: str | None = None,
    seed: int = 0,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Embed every spot by MOFA, the factor model that the paper compares with. It sees no neighbours.

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
        Column of ``obs`` with the slide of each spot: MOFA's groups, each centred by itself. One group by default.
    n_iterations
        Most iterations; fewer if it converges.
    key_added
        Where the embedding goes in ``obsm``.
    layer
        Layer with the raw counts; ``X`` by default.
    seed
        Seed of the fit. As mofapy2 starts from principal components, it hardly matters.
    table_key
        Table to use where ``adata`` is a ``SpatialData``.
    copy
        Return a copy instead of writing in place.

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
        If the counts are no raw counts, a spot has no slide, or there are too few spots or genes for so many
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
    seed = check_whole("seed", seed, 0)
    adata = get_anndata(adata, table_key, copy=copy)
    check_free(adata, key_added, _keys.MOFA, ["obsm"], "tl.mofa_embed")
    if library_key is not None:
        check_key("library_key", library_key)
        if library_key not in adata.obs:
            raise KeyError(f"library_key={library_key!r} not in adata.obs.")
        if adata.obs[library_key].isna().any():
            raise ValueError(f"obs[{library_key!r}] is missing for {int(adata.obs[library_key].isna().sum())} spots.")
    slide = _normalized(adata, layer, n_top_genes)
    if min(slide.shape) <= n_factors:
        raise ValueError(f"{slide.n_obs} spots and {slide.n_vars} genes are too few for n_factors={n_factors}.")
    check_variety(slide, n_factors, "n_factors")
    if library_key is not None:
        slide.obs["group"] = adata.obs[library_key].astype(str).to_numpy()
    logger.info("Fitting MOFA to %d spots and %d genes.", slide.n_obs, slide.n_vars)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(_Iterations(n_iterations)):
        muon.tl.mofa(
            slide,
            groups_label=None if library_key is None else "group",
            use_var=None,
            n_factors=n_factors,
            n_iterations=n_iterations,
            # mofapy2 draws a seed of its own for 0.
            seed=seed + 1,
            save_data=False,
            outfile=str(Path(folder) / "mofa.hdf5"),
            quiet=False,
        )
    factors = [f"factor{i + 1}" for i in range(n_factors)]
    weights = pd.DataFrame(np.asarray(slide.varm["LFs"])[:, :n_factors], index=slide.var_names, columns=factors)
    params: dict[str, Any] = {"n_factors": n_factors, "n_iterations": n_iterations, "seed": seed}
    if library_key is not None:
        params["library_key"] = library_key
    return _write(
        adata, slide, "X_mofa", key_added, "tl.mofa_embed", params, layer, n_top_genes, {"weights": weights}, copy=copy
    )


def _normalized(adata: AnnData, layer: str | None, n_top_genes: int | None) -> AnnData:
    """Counts at a common depth, log1p, of the most variable genes; everything checked."""
    import scanpy as sc
    from anndata import AnnData

    if n_top_genes is not None:
        check_whole("n_top_genes", n_top_genes, 2)
    columns = np.arange(adata.n_vars)
    log_counts = Counts(adata, columns, layer).log1p(columns, BATCH_SIZE)
    if not log_counts.count_nonzero():
        raise ValueError("the slide holds no counts.")
    slide = AnnData(log_counts.expm1())
    slide.var_names = adata.var_names
    normalize_total(slide)
    sc.pp.log1p(slide)
    if n_top_genes is not None and n_top_genes < slide.n_vars:
        sc.pp.highly_variable_genes(slide, n_top_genes=n_top_genes)
        slide = slide[:, slide.var["highly_variable"]].copy()
    return slide


def _write(
    adata: AnnData,
    slide: AnnData,
    source: str,
    key_added: str,
    function: str,
    params: dict[str, Any],
    layer: str | None,
    n_top_genes: int | None,
    found: dict[str, Any],
    *,
    copy: bool,
) -> AnnData | None:
    """Put the embedding of the slide into ``adata``."""
    embedding: NDArray[np.float32] = np.asarray(slide.obsm[source], dtype=np.float32)
    params = {"function": function, **params}
    for name, value in (("layer", layer), ("n_top_genes", n_top_genes)):
        if value is not None:
            params[name] = value
    adata.obsm[key_added] = embedding
    adata.uns[key_added] = {"params": params, **found}
    logger.info("Embedded %d spots; wrote obsm['%s'] %s.", adata.n_obs, key_added, embedding.shape)
    return adata if copy else None


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
