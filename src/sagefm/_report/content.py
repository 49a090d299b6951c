"""What a report shows, as data for its page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._report.pack import pack, pack_bytes, pack_floats
from sagefm._settings import ROWS_AT_A_TIME
from sagefm.pl._axes import palette_of
from sagefm.pl._imputation import find_gene
from sagefm.pl._spatial import Slide, get_slides, stored_colors
from sagefm.pp._counts import Counts

if TYPE_CHECKING:
    from anndata import AnnData

MAX_IMAGE, MAX_GROUPS, MAX_PAIRS = 1_200, 60, 100
GENE_COLUMNS = ["gene", "r_beyond_depth", "attainable_r", "share", "neighbors_r_beyond_depth", "r", "reliable"]
PAIR_COLUMNS = ["pair", "effect", "verdict", "zscore", "padj", "reference_r", "frac_up", "frac_down", "status"]


def make_content(
    adata: AnnData,
    genes: Sequence[str],
    groupings: Iterable[str],
    *,
    spatial_key: str,
    library_key: str | None,
) -> dict[str, Any]:
    """Slides, genes, pairs and the quality of the counts, ready for JSON."""
    slides = get_slides(adata, spatial_key, library_key, None)
    values = {gene: gene_values(adata, gene) for gene in genes}
    measured = measured_genes(adata, [columns for columns, _ in values.values()])
    groups = {name: _groups(adata, name) for name in groupings}
    responses = adata.obsm.get(_keys.PERTURB_LR)
    shown_pairs = [] if responses is None else list(responses.columns[:MAX_PAIRS])
    described = []
    for slide in slides:
        entry = _describe(slide)
        entry["groups"] = {
            name: {"names": names, "colors": colors, "codes": pack_bytes(codes[slide.rows])}
            for name, (names, colors, codes) in groups.items()
        }
        entry["values"] = {}
        for gene, seen in zip(genes, measured, strict=True):
            high = float(max(np.nanmax(part, initial=0.0) for part in (seen, values[gene][1]) if part is not None))
            parts = {"measured": seen, "predicted": values[gene][1]}
            entry["values"][gene] = {
                name: None if part is None else pack(part[slide.rows], 0.0, high) for name, part in parts.items()
            }
        entry["responses"] = {}
        for pair in shown_pairs:
            change = responses[pair].to_numpy(dtype=float)
            most = float(np.nanmax(np.abs(change), initial=0.0))
            entry["responses"][pair] = pack(change[slide.rows], -most, most)
        described.append(entry)
    return {
        "slides": described,
        "genes": _gene_table(adata, genes),
        "interactions": _pair_table(adata),
        "quality": to_records(adata.uns[_keys.QUALITY]["slides"]),
    }


def gene_values(adata: AnnData, gene: str) -> tuple[np.ndarray, np.ndarray]:
    """Columns that measure a gene, none where the slide lacks it, and its prediction at every spot."""
    symbol, columns = find_gene(adata, gene)
    if len(columns) and _keys.IMPUTED in adata.layers:
        predicted = np.asarray(adata.layers[_keys.IMPUTED][:, columns[0]], dtype=float).ravel()
        if np.isfinite(predicted).all():  # NaN stands for genes that weren't asked for
            return columns, predicted
    table = adata.obsm.get(_keys.IMPUTED)
    if not len(columns) and table is not None:
        for name in (gene, symbol):
            if name in table:
                return columns, table[name].to_numpy(dtype=float)
    raise KeyError(f"no prediction of {gene!r} in adata. Run sg.tl.impute(adata, [{gene!r}]) first.")


def measured_genes(adata: AnnData, columns: Sequence[np.ndarray]) -> list[np.ndarray | None]:
    """log1p counts of genes, each the sum of its columns; None for a gene that the slide lacks."""
    numbers = np.full(adata.n_vars, -1)
    for number, own in enumerate(columns):
        numbers[own] = number
    known = np.array([number for number, own in enumerate(columns) if len(own)], dtype=np.int64)
    layer = adata.uns[_keys.IMPUTED]["params"].get("layer")
    found = Counts(adata, numbers, layer).log1p(known, ROWS_AT_A_TIME).toarray() if len(known) else None
    place = {number: i for i, number in enumerate(known.tolist())}
    return [found[:, place[n]] if n in place and found is not None else None for n in range(len(columns))]


def _describe(slide: Slide) -> dict[str, Any]:
    """Where the spots of a slide are, and its image."""
    at = np.asarray(slide.coordinates, dtype=float)
    found = {
        "name": slide.name or "slide",
        "x": pack_floats(at[:, 0]),
        "y": pack_floats(at[:, 1]),
        "pitch": slide.pitch,
    }
    return found | {"low": at.min(axis=0).tolist(), "high": at.max(axis=0).tolist(), "image": _image(slide)}


def _image(slide: Slide) -> dict[str, Any] | None:
    """The tissue's image as JPEG, and its size in the unit of the coordinates."""
    from PIL import Image

    images: Mapping[str, Any] = slide.entry["images"]
    if not images:
        return None
    name = "hires" if "hires" in images else next(iter(images))
    pixels = np.asarray(images[name])
    pixels = (255 * pixels.clip(0, 1)).astype(np.uint8) if pixels.dtype.kind == "f" else pixels.astype(np.uint8)
    image = Image.fromarray(pixels).convert("RGB")
    factor = float(slide.entry[_keys.SCALEFACTORS][f"tissue_{name}_scalef"])
    width, height = image.width / factor, image.height / factor
    image.thumbnail((MAX_IMAGE, MAX_IMAGE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"source": source, "width": width, "height": height}


def _groups(adata: AnnData, name: str) -> tuple[list[str], list[str], np.ndarray]:
    """Names, colors and codes of a column of ``obs``; spots without a value are a group of their own."""
    column = adata.obs[name].astype("category")
    names, codes = [str(value) for value in column.cat.categories], column.cat.codes.to_numpy().astype(int)
    if len(names) > MAX_GROUPS:
        raise ValueError(f"obs[{name!r}] has {len(names)} values; a report colors {MAX_GROUPS} at most.")
    colors = palette_of(len(names), stored_colors(adata, name))
    if (codes < 0).any():
        codes = np.where(codes < 0, len(names), codes)
        names, colors = [*names, "no value"], [*colors, "#cccccc"]
    return names, colors, codes


def _gene_table(adata: AnnData, genes: Sequence[str]) -> list[dict[str, Any]]:
    """How well each gene is predicted."""
    table = adata.uns[_keys.IMPUTED].get("reliability")
    table = pd.DataFrame(columns=GENE_COLUMNS[1:]) if table is None else table
    symbols = [find_gene(adata, gene)[0] for gene in genes]
    found = table.reindex(symbols).reindex(columns=GENE_COLUMNS[1:])
    found.insert(0, "gene", list(genes))
    return to_records(found)


def _pair_table(adata: AnnData) -> list[dict[str, Any]]:
    """How each receptor responds."""
    if _keys.PERTURB_LR not in adata.uns:
        return []
    table = adata.uns[_keys.PERTURB_LR]["results"].rename_axis("pair").reset_index()
    return to_records(table.drop_duplicates("pair").reindex(columns=PAIR_COLUMNS))


def to_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with numbers to four digits, and None for what is missing."""
    rows = table.astype(object).where(table.notna(), None).to_dict(orient="records")
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return value if value is None else str(value)
