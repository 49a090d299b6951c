"""A slide as one page of HTML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import sagefm
from sagefm import _keys, models, pp, tl
from sagefm._anndata import get_anndata
from sagefm._docs import fill_docstring
from sagefm._io.files import atomic, check_writable
from sagefm._settings import logger
from sagefm._slides import find_library_key
from sagefm._utils import check_whole
from sagefm.pp._assess.card import to_fragment

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from sagefm.models import Model

N_GENES = 500
CITATION = "SAGE-FM: arXiv 2601.15504."


@fill_docstring
def report(
    adata: AnnData | SpatialData,
    path: str | Path,
    model: str | Path | Model = "sage-fm-hest1k",
    *,
    genes: Sequence[str] | None = None,
    n_genes: int = N_GENES,
    interactions: str | pd.DataFrame | Sequence[tuple[str, str]] | None = "paper",
    color: Sequence[str] = (),
    title: str | None = None,
    layer: str | None = None,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    device: str = "auto",
    table_key: str = "table",
) -> Path:
    """Write what is known of a slide into one HTML file, for people without Python.

    The page has the trust card, the tissue colored by cluster, by a gene measured beside predicted, or by the response
    to a ligand, tables of genes and of ligand-receptor pairs that sort and search, and how all of it was made. It shows
    what ``adata`` holds, and computes what is missing on a copy. It needs no network.

    Parameters
    ----------
    adata
        Slide, or several told apart by the graph's ``library_key``, with raw counts and coordinates.
    path
        File to write, ``.html``. A file that is there is replaced.
    {model}
    genes
        Genes to show. By default, the ``n_genes`` with the highest attainable r, of those with enough tissue to tell.
    n_genes
        How many, without ``genes``.
    interactions
        Pairs to perturb, as of :func:`sagefm.tl.perturb_lr`, if ``adata`` has no such results; None for none.
    color
        More columns of ``obs`` to color by.
    title
        Title of the page.
    {layer}
    {library_key}
    {spatial_key}
    {device}
    {table_key}

    Returns
    -------
    The path.

    Raises
    ------
    KeyError
        If a gene or a column is unknown, or the coordinates are missing.
    ValueError
        If the path isn't ``.html``, or the counts are not raw.

    Notes
    -----
    Values are stored in 254 steps between their lowest and highest. The plot shows the first 60 pairs that were run,
    and the first 100 have a map.

    Examples
    --------
    >>> import tempfile
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12, n_genes=8000)
    >>> path = tempfile.mkdtemp() + "/report.html"
    >>> sg.report(adata, path, "sagefm-nano", genes=["KRT8", "COL1A1"], interactions=None).name
    'report.html'
    """
    from sagefm._report.content import make_content

    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(f"{path} is not .html.")
    check_writable(path)
    check_whole("n_genes", n_genes, 1)
    adata = get_anndata(adata, table_key, copy=True)
    if missing := [name for name in color if name not in adata.obs]:
        raise KeyError(f"color={missing[0]!r} not in adata.obs.")
    options: dict[str, Any] = {"layer": layer, "device": device}
    loaded = models.load(model)
    made = _complete(adata, loaded, genes, interactions, spatial_key, library_key, options)
    table = adata.uns[_keys.IMPUTED].get("reliability")
    if genes is None:
        known = table[table["testable"] & table["share"].notna()]
        genes = list(known["attainable_r"].sort_values(ascending=False, kind="stable").index[:n_genes])
    groupings = [name for name in (_keys.CLUSTER, _keys.ANNOTATION, _keys.QUALITY, *color) if name in adata.obs]
    content = make_content(
        *(adata, list(genes), dict.fromkeys(groupings)),
        spatial_key=spatial_key,
        library_key=find_library_key(adata, library_key),
    )
    text = _page(adata, content, loaded, title or _title(adata.n_obs, len(content["slides"])), made)
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")
    logger.info("Wrote %s, %.1f MB.", path, len(text.encode()) / 1e6)
    return path


def _title(n_spots: int, n_slides: int) -> str:
    return f"A slide of {n_spots:,} spots" if n_slides == 1 else f"{n_slides} slides, {n_spots:,} spots"


def _complete(
    adata: AnnData,
    model: Model,
    genes: Sequence[str] | None,
    interactions: Any,
    spatial_key: str,
    library_key: str | None,
    options: dict[str, Any],
) -> list[str]:
    """Compute what is missing, and name it."""
    made = []
    if _keys.connectivities(_keys.GRAPH) not in adata.obsp:
        pp.neighborhood_graph(adata, library_key=library_key, spatial_key=spatial_key)
        made.append("neighborhoods")
    if _keys.ASSESSMENT not in adata.uns:
        pp.assess(adata, model, layer=options["layer"])
        made.append("trust card")
    if _keys.QUALITY not in adata.uns:
        pp.quality_control(adata, layer=options["layer"], library_key=library_key)
        made.append("quality control")
    if _keys.CLUSTER not in adata.obs:
        if _keys.EMBEDDING not in adata.obsm:
            tl.sage_embed(adata, model, **options)
            made.append("embedding")
        tl.cluster(adata)
        made.append("clusters")
    if not _has_predicted(adata, genes):
        tl.impute(adata, genes if genes is None else list(genes), model, **options)
        made.append("predicted genes")
    if interactions is not None and _keys.PERTURB_LR not in adata.uns:
        tl.perturb_lr(adata, interactions, model, store_spots=True, **options)
        made.append("responses to ligands")
    return made


def _has_predicted(adata: AnnData, genes: Sequence[str] | None) -> bool:
    """Whether the slide holds predictions of these genes, or of all measured ones."""
    from sagefm._report.content import gene_values

    if "reliability" not in adata.uns.get(_keys.IMPUTED, {}):
        return False
    try:
        for gene in adata.uns[_keys.IMPUTED]["reliability"].index[:1] if genes is None else genes:
            gene_values(adata, gene)
    except KeyError:
        return False
    return True


def _page(adata: AnnData, content: dict[str, Any], model: Model, title: str, made: Sequence[str]) -> str:
    """The template, filled in."""
    from plotly.offline import get_plotlyjs  # plotly carries the library that runs in the browser

    here = files("sagefm._report")
    css, script, page = (here.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html"))
    pairs = content["interactions"]
    responding = sum(row["verdict"] == "responds" for row in pairs)
    reliable = sum(bool(row["reliable"]) for row in content["genes"])
    parts = {
        "title": escape(title),
        "css": css,
        "card": to_fragment(adata.uns[_keys.ASSESSMENT]),
        "genes_text": f"{len(content['genes'])} genes, each predicted while it was hidden at the spot; {reliable} are "
        "predicted better than depth and the neighbors do, by more than chance. r beyond depth is what matters: most "
        "of r is the depth of the spots. The attainable r is what counting noise leaves possible.",
        "interactions_text": f"{responding} of {len(pairs)} receptors respond more than genes as abundant do. A "
        "response is a statement about the model, not an experiment.",
        "provenance": _provenance(adata, model, made),
        "data": json.dumps(content, allow_nan=False).replace("<", "\\u003c"),
        "plotly": get_plotlyjs(),
        "script": script,
    }
    return Template(page).substitute(parts)


def _provenance(adata: AnnData, model: Model, made: Sequence[str]) -> str:
    """Versions, the model's card, and the parameters of every tool."""
    recorded = {
        key: value["params"] for key, value in adata.uns.items() if isinstance(value, dict) and "params" in value
    }
    card = {name: part for name, part in model.card.items() if isinstance(part, str | int | float)}
    computed = ", ".join(made) if made else "nothing"
    return (
        f"<p>sagefm {escape(sagefm.__version__)}; {escape(repr(model))}. Computed for this page: {escape(computed)}. "
        f"Cite {escape(CITATION)}</p>\n<pre>{escape(json.dumps(recorded, indent=1, default=str))}</pre>\n"
        f"<pre>{escape(json.dumps(card, indent=1, default=str))}</pre>"
    )
