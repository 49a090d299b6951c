"""A simulated Visium slide with known domains and known ligand-receptor effects."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from sagefm import _keys
from sagefm._docs import fill_docstring
from sagefm._types import Floats, Floats32, Ints
from sagefm._utils import check_whole
from sagefm.datasets._simulated_image import paint
from sagefm.models._vocabulary import hest1k
from sagefm.pp._lattice import lattice_neighbors

if TYPE_CHECKING:
    from anndata import AnnData


MARKERS: dict[str, tuple[str, ...]] = {
    "tumor": (
        *("ERBB2", "KRT8", "KRT7", "CLDN3", "CLDN7", "EPCAM", "MUC1", "CDH1", "CLDN4", "GRB7"),
        *("TFF3", "AGR2", "S100A14", "ELF3", "SPINT2", "CD24", "FASN", "STARD3", "MIEN1", "XBP1"),
    ),
    "stroma": (
        *("COL1A1", "COL1A2", "COL3A1", "DCN", "LUM", "SPARC", "POSTN", "FN1", "VIM", "BGN"),
        *("COL6A3", "THBS2", "FBLN1", "MMP2", "TAGLN", "ACTA2", "IGFBP7", "COL5A1", "AEBP1", "CTSK"),
    ),
    "immune": (
        *("PTPRC", "CD74", "CD4", "CD3D", "CD3E", "CD2", "MS4A1", "CD79A", "CXCL13", "LTB"),
        *("TRBC2", "CORO1A", "CD52", "IL7R", "CCL5", "NKG7", "LCK", "CD37", "SELL", "TRAC"),
    ),
    "adipose": (
        *("FABP4", "PLIN2", "PLIN1", "PLIN4", "LPL", "CD36", "PNPLA2", "CFD", "G0S2", "LIPE"),
        *("SCD", "AQP7", "GPD1", "PPARG", "RBP4", "ADIRF", "CAVIN1", "CAV1", "TIMP4", "ACACB"),
    ),
}
"""Default markers of each domain."""

INTERACTIONS: tuple[tuple[str, str, float], ...] = (
    ("CXCL12", "CXCR4", 0.8),
    ("CCL19", "CCR7", 0.8),
    ("VEGFC", "FLT4", 0.6),
    ("TGFB1", "TGFBR2", -0.6),
    ("CSF1", "CSF1R", 0.0),
    ("IL6", "IL6R", 0.0),
    ("PDGFB", "PDGFRB", 0.0),
    ("WNT5A", "FZD2", 0.0),
)
"""Default interactions: effect on the receptor's log rate of one standard deviation of the ligand around it."""

PITCH = 100.0  # center to center, µm, as on Visium
DIAMETER = 55.0
MIN_LOG_SHARE = -8.5  # of planted genes: about one count a spot at the default depth


@fill_docstring
def simulated_visium(
    n_rows: int = 40,
    n_cols: int = 40,
    *,
    n_genes: int = 12_000,
    markers: Mapping[str, Sequence[str]] | None = None,
    interactions: Sequence[tuple[str, str, float]] | None = None,
    depth: float = 5_000,
    dispersion: float = 0.3,
    image: bool = False,
    rng: int | np.random.Generator = 0,
) -> AnnData:
    """Simulate a Visium slide with planted domains and planted ligand-receptor effects.

    Spots lie on the hexagonal lattice, and genes are as abundant as on average in real sections. Smooth
    random fields cut the tissue into domains, each raising its markers. A ligand follows a field of its
    own, and one standard deviation of its mean log1p count over the 14 neighbors multiplies the
    receptor's rate by ``exp(effect)``. Counts are gamma-Poisson around these rates and the depth of the
    spot. Real sections hold far more structure than this: it tells whether a method finds what is there,
    not how good a model is.

    Parameters
    ----------
    n_rows, n_cols
        Lattice rows, and spots in each.
    n_genes
        Genes of the slide, drawn from the 14,558 of the published model; those of ``markers`` and
        ``interactions`` are always among them.
    markers
        Genes of each domain. By default tumour, stroma, immune and adipose tissue of the breast.
    interactions
        ``(ligand, receptor, effect)``; an effect of 0 plants a null pair. By default four of each kind.
    depth
        Median total count of a spot.
    dispersion
        Variance beyond Poisson: ``mean + dispersion * mean²``.
    image
        Whether to paint an image like a haematoxylin-eosin section too, where domains differ by their nuclei and
        fibres: 1 µm a pixel, in ``uns["spatial"]``. Counts are the same without it.
    {rng}

    Returns
    -------
    Slide with counts (CSR, float32) in ``X``; ``array_row``, ``array_col``, ``in_tissue`` and the true
    ``domain`` in ``obs``; Ensembl ids in ``var["gene_ids"]``; µm in ``obsm["spatial"]``; and
    ``uns["truth"]``: ``DataFrame`` of ``interactions`` (ligand, receptor, effect) and of ``markers``
    (domain, gene, log_fold_change), and ``params``. With ``image``, also
    ``uns["spatial"]["simulated"]``, as Space Ranger's output is read; coordinates are then in its pixels.

    Raises
    ------
    ValueError
        If a gene of ``markers`` or ``interactions`` is not in the vocabulary, or a size is too small.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=500)
    >>> adata.shape
    (100, 500)
    >>> adata.uns["truth"]["interactions"].columns.tolist()
    ['ligand', 'receptor', 'effect']
    """
    markers = MARKERS if markers is None else markers
    interactions = INTERACTIONS if interactions is None else interactions
    planted = [gene for genes in markers.values() for gene in genes]
    planted += [gene for ligand, receptor, _ in interactions for gene in (ligand, receptor)]
    _check_genes(planted, n_genes)
    n_rows, n_cols = check_whole("n_rows", n_rows, 1), check_whole("n_cols", n_cols, 1)
    if not depth > 0 or not dispersion >= 0 or not markers:
        raise ValueError("depth has to be above 0, dispersion 0 or more, and there has to be at least one domain.")
    if n_rows * n_cols < 15:
        raise ValueError(f"{n_rows} x {n_cols} spots are fewer than the 15 of a neighborhood.")

    generator = np.random.default_rng(rng)
    row, col = np.divmod(np.arange(n_rows * n_cols), n_cols)
    array = np.column_stack([row, 2 * col + row % 2])
    position = np.column_stack([array[:, 1] / 2, array[:, 0] * np.sqrt(3) / 2])  # in spacings, x before y
    genes = _choose_genes(planted, n_genes, generator)
    ligands = list(dict.fromkeys(ligand for ligand, _, _ in interactions))
    log_rate, domain, log_fold = _draw_rates(genes, planted, markers, ligands, position, generator)
    neighbors = lattice_neighbors(array, 14)[0]
    counts = _draw_counts(log_rate, genes, interactions, neighbors, depth, dispersion, generator)

    adata = _to_anndata(counts, genes, array, pd.Categorical.from_codes(domain, list(markers)))
    adata.obsm[_keys.SPATIAL] = position * PITCH
    params = {"depth": float(depth), "dispersion": float(dispersion), "spot_diameter": DIAMETER}
    adata.uns["truth"] = {**_describe_truth(markers, interactions, log_fold), "params": params}
    if image:
        pixels, corner = paint(adata.obsm[_keys.SPATIAL], domain, 1.0, generator)
        adata.obsm[_keys.SPATIAL] -= corner
        factors = {"tissue_hires_scalef": 1.0, _keys.SPOT_DIAMETER: DIAMETER, _keys.MICRONS_PER_PIXEL: 1.0}
        adata.uns[_keys.SPATIAL] = {"simulated": {"images": {"hires": pixels}, _keys.SCALEFACTORS: factors}}
    return adata


def _check_genes(planted: Sequence[str], n_genes: int) -> None:
    """Refuse planted genes that are not in the vocabulary, and a number of genes that has no room for them."""
    vocabulary = hest1k()
    if unknown := sorted(set(planted) - set(vocabulary.symbols)):
        raise ValueError(f"not in the vocabulary of the published model: {unknown}.")
    if not len(set(planted)) <= n_genes <= len(vocabulary):
        raise ValueError(f"n_genes={n_genes} has to lie between {len(set(planted))} (planted) and {len(vocabulary)}.")


def _choose_genes(planted: Sequence[str], n_genes: int, rng: np.random.Generator) -> pd.Index:
    """Return the genes of the slide in the vocabulary's order: what is planted, and others at random."""
    symbols = hest1k().symbols
    others = rng.permutation(np.setdiff1d(symbols, planted))
    chosen = {*planted, *others[: n_genes - len(set(planted))]}
    return pd.Index([gene for gene in symbols if gene in chosen])


def _draw_rates(
    genes: pd.Index,
    planted: Sequence[str],
    markers: Mapping[str, Sequence[str]],
    ligands: Sequence[str],
    position: Floats,
    rng: np.random.Generator,
) -> tuple[Floats, Ints, dict[str, float]]:
    """Log rate of every gene at every spot, but for the interactions; domain of each spot; log fold of each marker."""
    log_share = _log_shares()[hest1k().find_symbols(genes)]
    at = genes.get_indexer(planted)
    log_share[at] = np.maximum(log_share[at], MIN_LOG_SHARE)
    log_rate = np.tile(log_share, (len(position), 1))
    domain = np.column_stack([_smooth_field(position, 6.0, rng) for _ in markers]).argmax(axis=1)
    log_fold = {gene: rng.uniform(2.5, 4.0) for names in markers.values() for gene in names}
    for i, names in enumerate(markers.values()):
        for gene in names:
            log_rate[:, genes.get_loc(gene)] += np.where(domain == i, 0.5, -0.5) * log_fold[gene]
    for ligand in ligands:
        log_rate[:, genes.get_loc(ligand)] += 1.2 * _smooth_field(position, 3.0, rng)
    return log_rate, domain, log_fold


def _draw_counts(
    log_rate: Floats,
    genes: pd.Index,
    interactions: Sequence[tuple[str, str, float]],
    neighbors: Ints,
    depth: float,
    dispersion: float,
    rng: np.random.Generator,
) -> Floats32:
    """Counts of every gene at every spot; adds the effects of the interactions to the rates."""
    scale = depth * np.exp(rng.normal(0.0, 0.35, len(log_rate))) / np.exp(log_rate).sum(axis=1)
    # Ligands are drawn first: what reaches a receptor is what was there, not what was expected.
    ligands = genes.get_indexer(list(dict.fromkeys(ligand for ligand, _, _ in interactions)))
    drawn = _gamma_poisson(np.exp(log_rate[:, ligands]) * scale[:, None], dispersion, rng)
    seen = dict(zip(genes[ligands], np.log1p(drawn).T, strict=True))
    for ligand, receptor, effect in interactions:
        signal = seen[ligand][neighbors].mean(axis=1)
        log_rate[:, genes.get_loc(receptor)] += effect * (signal - signal.mean()) / max(signal.std(), 1e-12)
    counts = _gamma_poisson(np.exp(log_rate) * scale[:, None], dispersion, rng)
    counts[:, ligands] = drawn
    return counts


def _to_anndata(counts: Floats32, genes: pd.Index, array: Ints, domain: pd.Categorical) -> AnnData:
    from anndata import AnnData

    places = {_keys.IN_TISSUE: 1, _keys.ARRAY_ROW: array[:, 0], _keys.ARRAY_COL: array[:, 1]}
    gene_ids = np.array(hest1k().ensembl_ids, dtype=object)[hest1k().find_symbols(genes)]
    return AnnData(
        sparse.csr_matrix(counts),
        obs=pd.DataFrame({**places, "domain": domain}, index=[f"spot_{i}" for i in range(len(array))]),
        var=pd.DataFrame({"gene_ids": gene_ids}, index=genes),
    )


def _describe_truth(
    markers: Mapping[str, Sequence[str]],
    interactions: Sequence[tuple[str, str, float]],
    log_fold: Mapping[str, float],
) -> dict[str, pd.DataFrame]:
    """Tables of what was planted."""
    rows = [(name, gene, log_fold[gene]) for name, genes in markers.items() for gene in genes]
    tables = {
        "interactions": pd.DataFrame(interactions, columns=["ligand", "receptor", "effect"]),
        "markers": pd.DataFrame(rows, columns=["domain", "gene", "log_fold_change"]),
    }
    return {name: table.set_axis(table.index.astype(str)) for name, table in tables.items()}


def _log_shares() -> Floats:
    """Logarithm of each vocabulary gene's typical share of a spot's counts, see tools/gene_abundance.py."""
    table = (files("sagefm.datasets") / "gene_abundance.txt.gz").read_bytes()
    return np.array(gzip.decompress(table).decode().split(), dtype=float)


def _smooth_field(position: Floats, length: float, rng: np.random.Generator, n_waves: int = 64) -> Floats:
    """Gaussian random field of unit variance and a correlation length in spacings, by random Fourier features."""
    waves = rng.normal(0.0, 1.0 / length, (2, n_waves))
    phase = rng.uniform(0.0, 2 * np.pi, n_waves)
    field = np.cos(position @ waves + phase).sum(axis=1)
    return (field - field.mean()) / max(field.std(), 1e-12)


def _gamma_poisson(mean: Floats, dispersion: float, rng: np.random.Generator) -> Floats32:
    rate = mean if dispersion == 0 else rng.gamma(1 / dispersion, mean * dispersion)
    return rng.poisson(rate).astype(np.float32)
