"""Tables that tools leave in ``uns``: one row for each observation, names as columns, filtered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata, get_result
from sagefm._docs import fill_docstring
from sagefm._utils import check_choice, check_whole, shorten

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


@fill_docstring
def reliability(
    adata: AnnData | SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    reliable: bool | None = None,
    by_slide: bool = False,
    key: str = _keys.IMPUTED,
    table_key: str = "table",
) -> pd.DataFrame:
    """Return how well each gene was predicted.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.impute`.
    genes
        Genes to return, in this order. By default, all genes that were scored.
    reliable
        Return only genes that are reliable (``True``) or that are not (``False``).
    by_slide
        Return the scores within each slide, with the slide in the column ``slide``.
    {key}
    {table_key}

    Returns
    -------
    Table with the column ``gene``, and those that :func:`sagefm.tl.impute` describes.

    Raises
    ------
    KeyError
        If genes were not scored, or one of ``genes`` was not.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=18, n_cols=18, n_genes=8000)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.impute(adata, ["KRT8", "COL1A1"], "sagefm-mini")
    >>> sg.get.reliability(adata, ["COL1A1", "KRT8"])["gene"].tolist()
    ['COL1A1', 'KRT8']
    """
    adata, run = get_anndata(adata, table_key), "sg.tl.impute(adata, ...)"
    table = get_result(adata, (key, "reliability"), pd.DataFrame, ["r", "reliable"], run, may_be_empty=True)
    called = table["reliable"].astype(bool)
    if by_slide:
        run += " with library_key"
        table = get_result(adata, (key, "reliability_by_slide"), pd.DataFrame, ["slide", "r"], run, may_be_empty=True)
    if genes is not None:
        table = table.loc[_chosen(genes, table.index, "gene", f"adata.uns[{key!r}]['reliability']")]
    if reliable is not None:
        table = table[called.reindex(table.index).to_numpy() == reliable]
    return _tidy(table, "gene")


@fill_docstring
def perturb_lr(
    adata: AnnData | SpatialData,
    pairs: str | Sequence[str] | None = None,
    *,
    verdict: Literal["responds", "not distinguishable from controls", "not testable"] | None = None,
    by: Literal["pair", "slide", "level"] = "pair",
    key: str = _keys.PERTURB_LR,
    table_key: str = "table",
) -> pd.DataFrame:
    """Return how receptors respond to their ligands.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.perturb_lr`.
    pairs
        Pairs to return, ``LIGAND|RECEPTOR``, in this order. By default, all pairs.
    verdict
        Return only pairs with this verdict.
    by
        One row for each ``"pair"``; for each pair and ``"slide"`` (in the column ``library``); or for each pair and
        ``"level"`` of the ligand, where there are more than two.
    {key}
    {table_key}

    Returns
    -------
    Table with the column ``pair``, and those that :func:`sagefm.tl.perturb_lr` describes. Pairs by slide and by level
    have the ``verdict`` of all slides together.

    Raises
    ------
    KeyError
        If there are no such results, or no such pair.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.perturb_lr(adata, [("CXCL12", "CXCR4"), ("CSF1", "CSF1R")], "sagefm-mini", n_controls=5)
    >>> sg.get.perturb_lr(adata)["pair"].tolist()
    ['CXCL12|CXCR4', 'CSF1|CSF1R']
    """
    check_choice("by", by, tuple(NAMES))
    adata, run = get_anndata(adata, table_key), "sg.tl.perturb_lr(adata, ...)"
    results = get_result(adata, (key, "results"), pd.DataFrame, ["verdict", "effect"], run)
    table = _tidy(results, "pair")
    if by != "pair":
        name, how = NAMES[by]
        table = get_result(adata, (key, name), pd.DataFrame, ["pair"], run.replace("...", f"..., {how}"))
        verdicts = results["verdict"][~results.index.duplicated()]
        table = table.assign(verdict=table["pair"].map(verdicts)).reset_index(drop=True)
    if pairs is not None:
        wanted = _chosen(pairs, table["pair"], "pair", f"adata.uns[{key!r}]")
        table = pd.concat([table[table["pair"] == pair] for pair in wanted])
    if verdict is not None:
        table = table[table["verdict"] == verdict]
    return table.reset_index(drop=True)


@fill_docstring
def perturb_targets(
    adata: AnnData | SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    tests: bool = False,
    by_slide: bool = False,
    key: str = _keys.PERTURB_TARGETS,
    table_key: str = "table",
) -> pd.DataFrame:
    """Return the effects of genes on their targets.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.perturb_targets`.
    genes
        Perturbed genes to return, in this order. By default, all.
    tests
        Return the tests of targets against control genes, one row for each gene.
    by_slide
        Return the effects within each slide, with the slide in the column ``library``.
    {key}
    {table_key}

    Returns
    -------
    Table with the columns that :func:`sagefm.tl.perturb_targets` describes.

    Raises
    ------
    KeyError
        If there are no such results, or no such gene.
    ValueError
        If tests are asked for by slide.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.tl.perturb_targets(adata, {{"TGFB1": ["COL1A1", "FN1"]}}, "sagefm-mini", n_controls=5)
    >>> sg.get.perturb_targets(adata)["target"].tolist()
    ['COL1A1', 'FN1']
    """
    if tests and by_slide:
        raise ValueError("tests are of all slides together: set either tests or by_slide.")
    name = "tests" if tests else "libraries" if by_slide else "results"
    run = f"sg.tl.perturb_targets(adata, ...{RUN_WITH[name]})"
    table = get_result(get_anndata(adata, table_key), (key, name), pd.DataFrame, ["gene"], run)
    if genes is not None:
        wanted = _chosen(genes, table["gene"], "gene", f"adata.uns[{key!r}]")
        table = pd.concat([table[table["gene"] == gene] for gene in wanted])
    return table.reset_index(drop=True)


@fill_docstring
def assessment(
    adata: AnnData | SpatialData, *, by_slide: bool = False, key: str = _keys.ASSESSMENT, table_key: str = "table"
) -> pd.DataFrame:
    """Return the checks of the trust card.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.pp.assess`.
    by_slide
        Return one row for each slide, with its verdict and checks.
    {key}
    {table_key}

    Returns
    -------
    Table with the column ``check`` (or ``slide``), and those that :func:`sagefm.pp.assess` describes.

    Raises
    ------
    KeyError
        If the slide was not assessed.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> sg.pp.neighborhood_graph(adata)
    >>> sg.pp.assess(adata, "sagefm-mini")
    >>> sg.get.assessment(adata)["check"].tolist()
    ['genes', 'depth', 'neighbors', 'lattice', 'expression', 'prediction', 'training']
    """
    name, first = ("slides", "slide") if by_slide else ("checks", "check")
    run = "sg.pp.assess(adata)"
    return _tidy(get_result(get_anndata(adata, table_key), (key, name), pd.DataFrame, ["verdict"], run), first)


@fill_docstring
def markers(
    adata: AnnData | SpatialData,
    cluster: str | Sequence[str] | None = None,
    *,
    max_padj: float = 0.05,
    min_log2_fold_change: float = 0.0,
    key: str = _keys.CLUSTER_MARKERS,
    table_key: str = "table",
) -> pd.DataFrame:
    """Return the genes that distinguish clusters, best first.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.cluster_markers`.
    cluster
        Clusters to return, one or several. By default, all clusters.
    max_padj
        Highest adjusted p-value.
    min_log2_fold_change
        Lowest fold change. Above 0, the default, are genes that are higher in the cluster; ``-numpy.inf`` returns all.
    {key}
    {table_key}

    Returns
    -------
    Table with the columns that :func:`sagefm.tl.cluster_markers` describes.

    Raises
    ------
    KeyError
        If there are no markers, or no such cluster.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=500)
    >>> sg.tl.cluster_markers(adata, "domain")
    >>> set(sg.get.markers(adata, "immune")["cluster"])
    {{'immune'}}
    """
    columns, run = ["cluster", "gene", "log2_fold_change", "padj"], "sg.tl.cluster_markers(adata, ...)"
    table = get_result(get_anndata(adata, table_key), (key, "results"), pd.DataFrame, columns, run)
    if cluster is not None:
        table = table[table["cluster"].isin(_chosen(cluster, table["cluster"], "cluster", f"adata.uns[{key!r}]"))]
    kept = (table["padj"] <= max_padj) & (table["log2_fold_change"] > min_log2_fold_change)
    return table[kept].reset_index(drop=True)


@fill_docstring
def marker_sets(
    adata: AnnData | SpatialData,
    *,
    n_genes: int | None = 100,
    max_padj: float = 0.05,
    min_log2_fold_change: float = 0.0,
    key: str = _keys.CLUSTER_MARKERS,
    table_key: str = "table",
) -> pd.DataFrame:
    """Return the markers of clusters as gene sets for decoupler and gseapy.

    Parameters
    ----------
    adata
        Slide after :func:`sagefm.tl.cluster_markers`.
    n_genes
        Number of genes of each cluster, best first; None for all.
    max_padj
        Highest adjusted p-value.
    min_log2_fold_change
        Lowest fold change.
    {key}
    {table_key}

    Returns
    -------
    Table with the columns ``source`` (the cluster), ``target`` (the gene) and ``weight`` (the test's score), a network
    as decoupler's methods take it. ``table.groupby("source")["target"].agg(list).to_dict()`` is what gseapy takes.

    Raises
    ------
    KeyError
        If there are no markers.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=500)
    >>> sg.tl.cluster_markers(adata, "domain")
    >>> sets = sg.get.marker_sets(adata, n_genes=5)
    >>> sets.columns.tolist(), len(sets)
    (['source', 'target', 'weight'], 20)
    """
    found = markers(adata, max_padj=max_padj, min_log2_fold_change=min_log2_fold_change, key=key, table_key=table_key)
    if n_genes is not None:
        found = found.groupby("cluster", sort=False).head(check_whole("n_genes", n_genes, 1))
    named = {"cluster": "source", "gene": "target", "score": "weight"}
    return found[list(named)].rename(columns=named).astype({"source": str}).reset_index(drop=True)


NAMES = {"pair": ("results", ""), "slide": ("libraries", "library_key=..."), "level": ("doses", "n_levels=5")}
RUN_WITH = {"results": "", "tests": ", n_controls=10", "libraries": ", library_key=..."}


def _tidy(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The table with its index as the first column."""
    return table.rename_axis(name).reset_index()


def _chosen(wanted: str | Sequence[str], known: pd.Index | pd.Series, what: str, where: str) -> list[str]:
    """Names that were asked for, checked."""
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    there = set(known)
    if unknown := [name for name in names if name not in there]:
        raise KeyError(f"no {what} {shorten(unknown)} in {where}; it has {shorten(dict.fromkeys(known))}.")
    return names
