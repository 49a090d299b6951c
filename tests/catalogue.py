"""Bad and odd inputs, and what every function that takes a slide has to do with each.

An oddity changes a slide that has everything on it. A function that reads what was changed must either give the very
results of the plain slide (``same``), or results without gaps (``fine``), or refuse with an error of ours, or one of
both where functions have minima of their own (``either``). One that doesn't read it must give the plain results.
Whoever refuses leaves the slide as it was.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import anndata as ad
import dask.array as da
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import sparse

import sagefm as sg
from sagefm.models._vocabulary import Vocabulary, hest1k
from sagefm.tl._labels import classifiers

SOURCE = Path(inspect.getfile(sg)).parent
SAME, FINE, REFUSED, EITHER = "same", "fine", "refused", "either"


# --- The plain slide and the functions


@dataclass(frozen=True)
class Kit:
    """What functions need beside the slide."""

    model: sg.models.Model = field(repr=False)
    absent: str
    pseudospots: ad.AnnData = field(repr=False)
    image: Path = field(repr=False)


def make_kit(slide: ad.AnnData) -> Kit:
    """Random model of the GraphSAGE family, whose vocabulary are the slide's genes and 30 others."""
    human = hest1k()
    own = human.find_symbols(slide.var_names)
    lacking = np.setdiff1d(np.arange(len(human)), own)[:30]
    genes = np.sort(np.concatenate([own, lacking]))
    vocabulary = Vocabulary(
        "small",
        tuple(human.symbols[gene] for gene in genes),
        tuple(human.ensembl_ids[gene] for gene in genes),
        tuple(human.other_symbols[gene] for gene in genes),
    )
    torch.manual_seed(0)
    network = sg.models.SAGE(len(vocabulary), (16, 12)).requires_grad_(False).eval()
    gene_mean = np.linspace(0, 1, len(vocabulary), dtype=np.float32)
    bins = slide.copy()
    spots = sg.pp.pseudospots(bins, **PSEUDOSPOTS)
    spots.obs["seen"] = np.arange(float(spots.n_obs))
    model = sg.models.Model("small", network, vocabulary, gene_mean=gene_mean)
    return Kit(model, human.symbols[lacking[0]], spots, _paint(slide))


def _paint(slide: ad.AnnData) -> Path:
    """Image of nothing but tissue that covers the spots."""
    width, height = (slide.obsm["spatial"].max(axis=0) + 100).astype(int)
    pixels = np.random.default_rng(0).integers(60, 200, (height, width, 3), dtype=np.uint8)
    path = Path(tempfile.mkdtemp()) / "he.png"
    Image.fromarray(pixels).save(path)
    return path


def plain_slide() -> ad.AnnData:
    """Slide with counts, coordinates, labels and donors."""
    adata = sg.datasets.simulated_visium(10, 11, n_genes=300, depth=1000, rng=0)  # in float16, exactly
    adata.obs["donor"] = pd.Categorical(np.where(np.arange(110) % 22 < 11, "a", "b"))
    adata.obs["library"] = pd.Categorical(np.where(np.arange(110) < 55, "left", "right"))
    adata.obsm["likelihood"] = pd.get_dummies(adata.obs["domain"]).astype(float)
    return adata


@dataclass(frozen=True)
class Function:
    """A public function on a slide, the slots it writes, and the parts of the slide that it reads."""

    call: Callable[[Any, Kit], Any]
    writes: tuple[str, ...] = ()
    reads: frozenset[str] = frozenset()


def _function(call: Callable[[Any, Kit], Any], writes: str = "", reads: str = "") -> Function:
    return Function(call, tuple(writes.split()), frozenset(reads.split()))


def _small_forests(call: Callable[[Any, Kit], Any]) -> Callable[[Any, Kit], Any]:
    """How good they are isn't asked here, and an odd slide may want thousands."""

    def small(adata: Any, kit: Kit) -> Any:
        with mock.patch.object(classifiers, "N_TREES", 5):
            return call(adata, kit)

    return small


PAIRS = [("CXCL12", "CXCR4"), ("TGFB1", "TGFBR2"), ("IL6", "IL6R")]
SCREEN: dict[str, Any] = {
    "n_levels": 3,
    "n_controls": 5,
    "control_spots": 30,
    "library_key": "library",
    "store_spots": True,
    "device": "cpu",
}
PSEUDOSPOTS: dict[str, Any] = {"diameter": 250.0, "spacing": 300.0, "microns_per_unit": 1.0, "min_bins": 1}

# In the order in which the plain slide is prepared.
FUNCTIONS: dict[str, Function] = {
    "pp.neighborhood_graph": _function(
        lambda a, k: sg.pp.neighborhood_graph(a),
        "obsp/sage_connectivities obsp/sage_distances obs/sage_far_neighbors uns/sage_neighbors",
        "array spots",
    ),
    "pp.neighborhood_graph, knn": _function(
        lambda a, k: sg.pp.neighborhood_graph(a, "knn", library_key="library", key_added="by_library"),
        "obsp/by_library_connectivities obsp/by_library_distances obs/by_library_far_neighbors "
        "uns/by_library_neighbors",
        "coordinates library spots",
    ),
    "pp.align_genes": _function(lambda a, k: sg.pp.align_genes(a, k.model), "var/sage_gene uns/sage_genes", "genes"),
    "pp.assess": _function(
        lambda a, k: sg.pp.assess(a, k.model), "uns/sage_assessment", "counts genes graph distances spots"
    ),
    "pp.pseudospots": _function(
        lambda a, k: sg.pp.pseudospots(a, **PSEUDOSPOTS),
        "obs/pseudospot obs/in_pseudospot uns/pseudospot",
        "counts coordinates spots",
    ),
    "pp.from_pseudospots": _function(
        lambda a, k: sg.pp.from_pseudospots(a, k.pseudospots, obs=["seen"]), "obs/seen", "pseudospot"
    ),
    "tl.sage_embed": _function(
        lambda a, k: sg.tl.sage_embed(a, k.model, device="cpu"), "obsm/X_sage uns/X_sage", "counts genes graph"
    ),
    "tl.impute": _function(
        lambda a, k: sg.tl.impute(a, ["KRT8", "COL1A1", k.absent], k.model, device="cpu"),
        "layers/sage_imputed obsm/sage_imputed uns/sage_imputed var/sage_reliability",
        "counts genes graph names coordinates",
    ),
    "tl.perturb_lr": _function(
        lambda a, k: sg.tl.perturb_lr(a, PAIRS, k.model, **SCREEN),
        "uns/perturb_lr obsm/perturb_lr",
        "counts genes graph names",
    ),
    "tl.perturb_targets": _function(
        lambda a, k: sg.tl.perturb_targets(a, {"CXCL12": ["CXCR4", "KRT8"]}, k.model, n_controls=3, device="cpu"),
        "uns/perturb_targets",
        "counts genes graph names",
    ),
    "tl.gene_sensitivity": _function(
        lambda a, k: sg.tl.gene_sensitivity(a, ["KRT8", "DCN"], ["CXCR4"], model=k.model, device="cpu"),
        "uns/gene_sensitivity",
        "counts genes graph names",
    ),
    "tl.perturbation_overlap": _function(
        lambda a, k: sg.tl.perturbation_overlap(a), "uns/perturb_lr/overlap", "screen"
    ),
    "tl.cluster": _function(
        lambda a, k: sg.tl.cluster(a, n_clusters=3), "obs/sage_cluster uns/sage_cluster", "embedding spots"
    ),
    "tl.cluster_markers": _function(
        lambda a, k: sg.tl.cluster_markers(a), "uns/sage_cluster_markers", "counts clusters"
    ),
    "tl.cluster_proportions": _function(
        lambda a, k: sg.tl.cluster_proportions(a, "domain"), "uns/sage_cluster_proportions", "clusters labels"
    ),
    "tl.annotate": _function(
        _small_forests(lambda a, k: sg.tl.annotate(a, "domain", group_key="donor", classifier="forest")),
        "obs/sage_annotation obsm/sage_annotation uns/sage_annotation",
        "embedding labels donors",
    ),
    "tl.composition": _function(
        lambda a, k: sg.tl.composition(a, "likelihood", group_key="donor", n_epochs=1, device="cpu"),
        "obsm/sage_composition uns/sage_composition",
        "embedding likelihood donors",
    ),
    "tl.predict_expression": _function(
        lambda a, k: sg.tl.predict_expression(a, ["KRT8", "DCN"], use_rep="X_sage", group_key="donor", scale="none"),
        "obsm/histology_expression uns/histology_expression var/histology_expression_reliability",
        "counts names embedding donors",
    ),
    "pp.histology_patches": _function(
        lambda a, k: sg.pp.histology_patches(a, k.image, size=32),
        "obs/histology_tissue obs/histology_padded uns/histology",
        "coordinates spots",
    ),
    "tl.histology_embed": _function(
        lambda a, k: sg.tl.histology_embed(a), "obsm/X_histology uns/X_histology", "coordinates spots"
    ),
    "tl.nichepca_embed": _function(
        lambda a, k: sg.tl.nichepca_embed(a, n_components=5), "obsm/X_nichepca uns/X_nichepca", "counts graph"
    ),
    "tl.join_representations": _function(
        lambda a, k: sg.tl.join_representations(a, ["X_sage", "X_nichepca"], library_key="library"),
        "obsm/X_joined uns/X_joined",
        "embedding library",
    ),
    "tl.mofa_embed": _function(
        lambda a, k: sg.tl.mofa_embed(a, n_factors=2, n_iterations=2), "obsm/X_mofa uns/X_mofa", "counts"
    ),
    "benchmark.evaluate_imputation": _function(
        lambda a, k: sg.benchmark.evaluate_imputation(a, k.model, device="cpu"), "", "counts genes graph"
    ),
    "benchmark.compare_imputation": _function(
        lambda a, k: sg.benchmark.compare_imputation(a, k.model, n_components=4, n_folds=2, device="cpu"),
        "",
        "counts genes graph",
    ),
    "benchmark.missingness_curve": _function(
        lambda a, k: sg.benchmark.missingness_curve(a, k.model, fractions=[0.2, 0.8], device="cpu"),
        "",
        "counts genes graph",
    ),
    "benchmark.evaluate_clustering": _function(
        lambda a, k: sg.benchmark.evaluate_clustering(a, "X_sage", "domain", n_repeats=1), "", "embedding labels"
    ),
    "benchmark.evaluate_annotation": _function(
        _small_forests(
            lambda a, k: sg.benchmark.evaluate_annotation(a, "domain", "X_sage", classifier="forest", n_bootstraps=2)
        ),
        "",
        "embedding labels donors",
    ),
    "benchmark.evaluate_composition": _function(
        lambda a, k: sg.benchmark.evaluate_composition(a, "likelihood", "X_sage", n_layers=2, n_epochs=1, device="cpu"),
        "",
        "embedding likelihood donors",
    ),
    "benchmark.centroid_distances": _function(
        lambda a, k: sg.benchmark.centroid_distances(a, "X_sage", "domain"), "", "counts embedding labels"
    ),
}


PLOTS: dict[str, Function] = {
    "pl.annotation": _function(lambda a, k: sg.pl.annotation(a, "domain", show=False), reads="coordinates annotation"),
    "pl.assessment": _function(lambda a, k: sg.pl.assessment(a), reads="card"),
    "pl.cluster": _function(lambda a, k: sg.pl.cluster(a, show=False), reads="clusters coordinates"),
    "pl.cluster_proportions": _function(lambda a, k: sg.pl.cluster_proportions(a), reads="tables"),
    "pl.cluster_markers": _function(lambda a, k: sg.pl.cluster_markers(a), reads="tables"),
    "pl.composition": _function(lambda a, k: sg.pl.composition(a, show=False), reads="coordinates likelihoods"),
    "pl.dose_response": _function(lambda a, k: sg.pl.dose_response(a), reads="screen"),
    "pl.imputation": _function(
        lambda a, k: sg.pl.imputation(a, "KRT8", show=False), reads="coordinates imputed counts"
    ),
    "pl.perturbation_lollipop": _function(lambda a, k: sg.pl.perturbation_lollipop(a), reads="screen"),
    "pl.perturbation_overlap": _function(lambda a, k: sg.pl.perturbation_overlap(a), reads="overlap"),
    "pl.perturbation_scatter": _function(lambda a, k: sg.pl.perturbation_scatter(a), reads="overlap"),
    "pl.perturbation_spatial": _function(
        lambda a, k: sg.pl.perturbation_spatial(a, "CXCL12|CXCR4"), reads="coordinates"
    ),
    "pl.reliability": _function(lambda a, k: sg.pl.reliability(a), reads="imputed"),
    "pl.sensitivity_heatmap": _function(lambda a, k: sg.pl.sensitivity_heatmap(a), reads="tables"),
    "pl.target_controls": _function(lambda a, k: sg.pl.target_controls(a), reads="tables"),
    "pl.target_effects": _function(lambda a, k: sg.pl.target_effects(a), reads="tables"),
}


# --- Bad and odd slides


@dataclass(frozen=True)
class Oddity:
    """A change of the prepared slide: which parts it spoils, and what functions that read these have to do.

    ``but`` says it for single functions.
    """

    name: str
    change: Callable[[ad.AnnData], Any]
    spoils: frozenset[str]
    expect: str
    match: str = ""
    but: Mapping[str, str] = field(default_factory=dict)

    def expected(self, name: str, function: Function) -> str:
        if name in self.but:
            return self.but[name]
        return self.expect if self.spoils & function.reads else SAME


def _odd(
    name: str,
    change: Callable[[ad.AnnData], Any],
    spoils: str,
    expect: str,
    match: str = "",
    but: Mapping[str, str] | None = None,
) -> Oddity:
    return Oddity(name, change, frozenset(spoils.split()), expect, match, but or {})


def _counts(make: Callable[[sparse.csr_matrix], Any]) -> Callable[[ad.AnnData], None]:
    """Other counts in X."""

    def change(adata: ad.AnnData) -> None:
        adata.X = make(adata.X.copy())

    return change


def _dense(make: Callable[[np.ndarray], Any]) -> Callable[[ad.AnnData], None]:
    return _counts(lambda X: make(X.toarray()))


def _with(matrix: Any, value: float, row: int = 5) -> Any:
    """Set one stored value."""
    matrix.data[matrix.indptr[row]] = value
    return matrix


def _unsorted(X: sparse.csr_matrix) -> sparse.csr_matrix:
    for start, stop in zip(X.indptr[:-1], X.indptr[1:], strict=True):
        X.indices[start:stop], X.data[start:stop] = X.indices[start:stop][::-1].copy(), X.data[start:stop][::-1].copy()
    X.has_sorted_indices = False
    return X


def _twice(X: sparse.csr_matrix) -> sparse.csr_matrix:
    """Every entry in two parts."""
    data = np.stack([X.data - 1, np.ones_like(X.data)], axis=1).ravel()
    made = sparse.csr_matrix(X.shape, dtype=X.dtype)
    made.data, made.indices, made.indptr = data, np.repeat(X.indices, 2), X.indptr * 2
    made.has_canonical_format = False
    return made


def _explicit_zeros(X: sparse.csr_matrix) -> sparse.csr_matrix:
    full = sparse.csr_matrix(np.ones(X.shape, dtype=X.dtype))
    full.data[:] = X.toarray().ravel()
    return full


def _long_indices(X: sparse.csr_matrix) -> sparse.csr_matrix:
    X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
    return X


def _read_only(X: Any) -> Any:
    for array in (X.data, X.indices, X.indptr) if sparse.issparse(X) else (X,):
        array.setflags(write=False)
    return X


def _all_read_only(adata: ad.AnnData) -> None:
    _read_only(adata.X)
    for slot in (adata.obsm, adata.obsp):
        for value in slot.values():
            if isinstance(value, np.ndarray) or sparse.issparse(value):
                _read_only(value)


def _hidden(adata: ad.AnnData) -> None:
    """Counts in a layer or in raw, something else in X."""
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()


def _into_raw(adata: ad.AnnData) -> None:
    adata.raw = adata.copy()
    adata.X = adata.X.log1p()


def _scaled(X: np.ndarray) -> np.ndarray:
    return (X - X.mean(axis=0)) / np.where(X.std(axis=0) > 0, X.std(axis=0), 1)


def _view(adata: ad.AnnData) -> ad.AnnData:
    twice = ad.concat(
        {"this": adata, "other": adata}, index_unique="-", pairwise=True, uns_merge="first", merge="first"
    )
    view = twice[:110]
    assert view.is_view
    return view


@functools.cache
def _folder() -> Path:
    """For files of the prepared slide, which are written once."""
    return Path(tempfile.mkdtemp(prefix="catalogue-"))


def _backed(mode: str) -> Callable[[ad.AnnData], ad.AnnData]:
    def change(adata: ad.AnnData) -> ad.AnnData:
        path = _folder() / f"backed_{mode}.h5ad"
        if not path.exists():
            adata.write_h5ad(path)
        return ad.read_h5ad(path, backed=mode)

    return change


def _round_trip(suffix: str) -> Callable[[ad.AnnData], ad.AnnData]:
    @functools.cache
    def read() -> ad.AnnData:
        path = _folder() / f"slide{suffix}"
        return ad.read_zarr(path) if suffix == ".zarr" else ad.read_h5ad(path)

    def change(adata: ad.AnnData) -> ad.AnnData:
        path = _folder() / f"slide{suffix}"
        if not path.exists():
            adata.write_zarr(path) if suffix == ".zarr" else adata.write_h5ad(path)
        return read().copy()

    return change


def _set(slot: str, key: str, make: Callable[[Any], Any]) -> Callable[[ad.AnnData], None]:
    """Change one entry of a slot, made from what is there."""

    def change(adata: ad.AnnData) -> None:
        old = getattr(adata, slot).get(key)
        getattr(adata, slot)[key] = make(old.copy() if hasattr(old, "copy") else old)

    return change


def _drop(slot: str, *keys: str) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        for key in keys:
            del getattr(adata, slot)[key]

    return change


def _put(array: Any, where: Any, value: Any) -> Any:
    array[where] = value
    return array


def _column(key: str, make: Callable[[pd.Series], Any], slot: str = "obs") -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        frame = getattr(adata, slot)
        frame[key] = make(frame[key].copy())

    return change


def _series(where: Any, value: Any) -> Callable[[pd.Series], pd.Series]:
    def make(column: pd.Series) -> pd.Series:
        column = column.astype(object)
        column.iloc[where] = value
        return column

    return make


def _names(make: Callable[[list[str]], Any], slot: str = "var_names") -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            setattr(adata, slot, make(list(getattr(adata, slot))))

    return change


def _genes(make: Callable[[list[str], list[str]], list[str]]) -> Callable[[ad.AnnData], None]:
    """Other gene names, made from symbols and Ensembl ids; without what else tells the genes."""

    def change(adata: ad.AnnData) -> None:
        symbols, ids = list(adata.var_names), list(adata.var["gene_ids"])
        del adata.var["gene_ids"], adata.var["sage_gene"], adata.uns["sage_genes"]
        adata.var_names = make(symbols, ids)

    return change


def _doubled_gene(adata: ad.AnnData) -> ad.AnnData:
    """The counts of a gene in two columns of one name."""
    half = adata[:, ["KRT8"]].copy()
    adata.X = adata.X.tolil()
    column = adata.var_names.get_loc("KRT8")
    rest = np.floor(half.X.toarray() / 2)
    adata.X[:, column] = half.X.toarray() - rest
    adata.X = adata.X.tocsr()
    half.X = sparse.csr_matrix(rest)
    for key in list(adata.layers):
        del adata.layers[key]
    made = ad.concat([adata, half], axis=1, merge="first", uns_merge="first", pairwise=True)
    made.obs = adata.obs
    for key in ("sage_genes",):
        made.uns.pop(key, None)
    return made


def _spots(keep: Any) -> Callable[[ad.AnnData], ad.AnnData]:
    return lambda adata: adata[keep].copy()


def _exchange(adata: ad.AnnData) -> None:
    adata.obs["array_row"], adata.obs["array_col"] = adata.obs["array_col"].copy(), adata.obs["array_row"].copy()


def _both_columns(make: Callable[[np.ndarray], np.ndarray]) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        for key in ("array_row", "array_col"):
            adata.obs[key] = make(adata.obs[key].to_numpy().astype(np.int64))

    return change


def _lonely(graph: sparse.csr_matrix) -> sparse.csr_matrix:
    """Without the neighbours of two spots."""
    graph = graph.tolil()
    graph[[0, 50]] = 0
    return graph.tocsr()


def _tabulate(adata: ad.AnnData, key: str) -> None:
    adata.obsm[key] = pd.DataFrame(adata.obsm[key], index=adata.obs_names).rename(columns=str)


def _level(column: pd.Series) -> pd.Series:
    return column.astype("category").cat.add_categories(["none"])


def _gap(frame: pd.DataFrame) -> pd.DataFrame:
    frame.iloc[:5] = np.nan
    return frame


RESULTS = ("perturb_lr", "perturb_targets", "gene_sensitivity", "sage_cluster_markers", "sage_cluster_proportions")


def _texts(adata: ad.AnnData) -> None:
    for key in (*RESULTS, "sage_assessment", "sage_imputed"):
        adata.uns[key] = "text"


def _empties(adata: ad.AnnData) -> None:
    for key in (*RESULTS, "sage_assessment", "sage_imputed"):
        adata.uns[key] = {}


def _change_tables(adata: ad.AnnData, make: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change them at any depth."""

    def changed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: changed(part) for name, part in value.items()}
        return make(value) if isinstance(value, pd.DataFrame) else value

    for key in (*RESULTS, "sage_assessment", "sage_imputed"):
        adata.uns[key] = changed(adata.uns[key])


def _without_columns(adata: ad.AnnData) -> None:
    _change_tables(adata, lambda table: table.iloc[:, :0])


def _without_rows(adata: ad.AnnData) -> None:
    _change_tables(adata, lambda table: table.iloc[:0])


def _forget(adata: ad.AnnData) -> None:
    for slot, keys in {
        "obs": ["sage_annotation"],
        "obsm": ["sage_annotation", "sage_composition", "sage_imputed"],
        "layers": ["sage_imputed"],
        "uns": ["sage_annotation", "sage_composition", "sage_imputed"],
        "var": ["sage_reliability"],
    }.items():
        for key in keys:
            del getattr(adata, slot)[key]


GRAPH, DISTANCES, EMBEDDING = "sage_connectivities", "sage_distances", "X_sage"
EVERYTHING = (
    "counts genes names graph distances spots coordinates array library embedding labels donors likelihood clusters "
    "pseudospot"
)

# What does not follow from the parts that a function reads: the trust card says what is wrong, others have too little.
CARD = {"pp.assess": FINE}
REPORTED = {"pp.align_genes": FINE}  # which names matched is another report
NO_EMBEDDING = {
    "tl.nichepca_embed": REFUSED,
    "tl.mofa_embed": REFUSED,
    "benchmark.compare_imputation": REFUSED,
}
OFF_THE_IMAGE = {"pp.histology_patches": REFUSED}
NO_TARGET = {"tl.predict_expression": REFUSED}
FEW_SPOTS = {"tl.join_representations": FINE}
FEW_GENES = {
    "pp.assess": FINE,
    "pp.pseudospots": FINE,
    "tl.cluster_markers": FINE,
    "benchmark.centroid_distances": FINE,
    "pl.imputation": FINE,
}
NO_GRAPH = {"pp.neighborhood_graph": REFUSED, "pp.neighborhood_graph, knn": REFUSED}
ON_TOP = {"pp.neighborhood_graph, knn": REFUSED, "pp.pseudospots": REFUSED}
THREE_SAMPLES = {"benchmark.centroid_distances": REFUSED}
NO_GAPS = {**THREE_SAMPLES, "tl.cluster_proportions": REFUSED}
DRAWN = {"pl.cluster": FINE}
NAMES = {"tl.annotate": REFUSED}  # classes become names of columns
COUNTED = {"tl.cluster_proportions": FINE}
IN_ONE = {**ON_TOP, **OFF_THE_IMAGE, "tl.impute": REFUSED}
NO_SCORES = {"tl.annotate": FINE, "tl.composition": FINE}  # nothing is held out, which they say
NO_GENES = {"pp.assess": FINE, "pp.pseudospots": FINE}
BARE = {"pl.imputation": FINE, "pl.perturbation_overlap": SAME, "pl.perturbation_scatter": FINE}
TOO_FEW = {**NO_EMBEDDING, **NO_TARGET, "tl.cluster_markers": REFUSED}

ODDITIES: list[Oddity] = [
    # Containers and number types that say the same.
    _odd("counts in CSC", _counts(sparse.csc_matrix), "counts", SAME),
    _odd("counts in a sparse array", _counts(sparse.csr_array), "counts", SAME),
    _odd("counts in a sparse array by columns", _counts(sparse.csc_array), "counts", SAME),
    _odd("dense counts", _dense(np.asarray), "counts", SAME),
    _odd("dense counts by columns", _dense(np.asfortranarray), "counts", SAME),
    _odd("dense float64", _dense(lambda X: X.astype(np.float64)), "counts", SAME),
    _odd("dense float16", _dense(lambda X: X.astype(np.float16)), "counts", SAME),
    _odd("dense uint16", _dense(lambda X: X.astype(np.uint16)), "counts", SAME),
    _odd("big-endian counts", _dense(lambda X: X.astype(">f4")), "counts", SAME),
    _odd("long double", _dense(lambda X: X.astype(np.longdouble)), "counts", SAME),
    _odd("float64", _counts(lambda X: X.astype(np.float64)), "counts", SAME),
    _odd("int32", _counts(lambda X: X.astype(np.int32)), "counts", SAME),
    _odd("int64", _counts(lambda X: X.astype(np.int64)), "counts", SAME),
    _odd("uint64", _counts(lambda X: X.astype(np.uint64)), "counts", SAME),
    _odd("unsorted indices", _counts(_unsorted), "counts", SAME),
    _odd("entries stored in two parts", _counts(_twice), "counts", SAME),
    _odd("zeros that are stored", _counts(_explicit_zeros), "counts", SAME),
    _odd("64-bit indices", _counts(_long_indices), "counts", SAME),
    _odd("negative zeros", _dense(lambda X: np.where(X == 0, -0.0, X)), "counts", SAME),
    _odd("read-only arrays", _all_read_only, "counts graph embedding", SAME),
    _odd("read-only dense counts", _dense(_read_only), "counts", SAME),
    _odd("dask array", _dense(lambda X: da.from_array(X, chunks=(37, 50))), "counts", SAME),
    _odd(
        "dask array of sparse blocks",
        _counts(lambda X: da.from_array(X, chunks=(40, -1), asarray=False)),
        "counts",
        SAME,
    ),
    _odd("a view", _view, "counts", SAME, but={"pp.pseudospots": FINE}),
    _odd("a backed file", _backed("r"), "counts", SAME),
    _odd("a backed file that can be written", _backed("r+"), "counts", SAME),
    _odd("read from .h5ad", _round_trip(".h5ad"), EVERYTHING, SAME),
    _odd("read from .zarr", _round_trip(".zarr"), EVERYTHING, SAME),
    _odd("a gene in two columns", _doubled_gene, "", SAME),
    # Counts that are none.
    _odd("bool", _counts(lambda X: X.astype(bool)), "counts", FINE),
    _odd("a negative count", _counts(lambda X: _with(X, -1)), "counts", REFUSED, "negative"),
    _odd("NaN", _counts(lambda X: _with(X, np.nan)), "counts", REFUSED, "not finite"),
    _odd("inf", _counts(lambda X: _with(X, np.inf)), "counts", REFUSED, "not finite"),
    _odd("minus inf", _counts(lambda X: _with(X, -np.inf)), "counts", REFUSED, "negative"),
    _odd("NaN in the last spot", _counts(lambda X: _with(X, np.nan, 109)), "counts", REFUSED, "not finite"),
    _odd("log1p", _counts(lambda X: X.log1p()), "counts", REFUSED, "no counts"),
    _odd("shares", _counts(lambda X: X.multiply(1e4 / X.sum(axis=1)).tocsr()), "counts", REFUSED, "no counts"),
    _odd("scaled", _dense(_scaled), "counts", REFUSED, "negative"),
    _odd("log1p, counts in a layer", _hidden, "counts", REFUSED, "layer='counts'"),
    _odd("log1p, counts in raw", _into_raw, "counts", REFUSED, r"adata\.raw"),
    _odd("a huge int64", _counts(lambda X: _with(X.astype(np.int64), 2**62)), "counts", REFUSED, "overflowed"),
    _odd(
        "the largest uint64", _counts(lambda X: _with(X.astype(np.uint64), 2**64 - 1)), "counts", REFUSED, "overflowed"
    ),
    _odd("the largest float32", _counts(lambda X: _with(X, np.finfo(np.float32).max)), "counts", REFUSED, "overflowed"),
    _odd("two billion", _counts(lambda X: _with(X, 2.0**31)), "counts", FINE),
    _odd("beyond float32", _counts(lambda X: _with(X.astype(np.float64), 1e39)), "counts", REFUSED, "overflowed"),
    _odd("complex", _dense(lambda X: X.astype(np.complex64)), "counts", REFUSED, "complex64"),
    _odd("objects", _dense(lambda X: X.astype(object)), "counts", REFUSED, "object"),
    _odd("text", _dense(lambda X: X.astype(int).astype(str)), "counts", REFUSED, "type"),
    _odd("a masked array", _dense(np.ma.array), "counts", REFUSED, "masked"),
    _odd("no X", lambda a: setattr(a, "X", None), "counts", REFUSED, "X is empty"),
    _odd("a spot without counts", _dense(lambda X: _put(X, 7, 0)), "counts", FINE),
    _odd("a neighbourhood without counts", _dense(lambda X: _put(X, slice(0, 60), 0)), "counts", FINE),
    _odd("a gene without counts", _dense(lambda X: _put(X, (slice(None), 3), 0)), "counts", FINE),
    _odd("one count in all", _dense(lambda X: _put(np.zeros_like(X), (0, 0), 1)), "counts", FINE, but=TOO_FEW),
    _odd("no counts at all", _dense(np.zeros_like), "counts", FINE, but=TOO_FEW),
    _odd("all spots alike", _dense(lambda X: np.tile(X[:1], (len(X), 1))), "counts", FINE, but=NO_EMBEDDING),
    _odd("all values one", _dense(np.ones_like), "counts", FINE, but=NO_EMBEDDING),
    # Genes.
    _odd("Ensembl ids", _genes(lambda symbols, ids: ids), "genes", SAME, but=REPORTED),
    _odd(
        "Ensembl ids with versions", _genes(lambda symbols, ids: [f"{i}.7" for i in ids]), "genes", SAME, but=REPORTED
    ),
    _odd(
        "symbols and Ensembl ids mixed",
        _genes(lambda symbols, ids: [*symbols[:100], *ids[100:]]),
        "genes",
        SAME,
        but=REPORTED,
    ),
    _odd(
        "mouse symbols",
        _genes(lambda symbols, ids: [s.capitalize() for s in symbols]),
        "genes names",
        REFUSED,
        "mouse",
        but=CARD,
    ),
    _odd("small letters", _genes(lambda symbols, ids: [s.lower() for s in symbols]), "genes names", REFUSED, but=CARD),
    _odd(
        "numbers for genes", _genes(lambda symbols, ids: [str(i) for i in range(300)]), "genes names", REFUSED, but=CARD
    ),
    _odd("empty names", _genes(lambda symbols, ids: ["", *symbols[1:]]), "genes", FINE),
    _odd("all names alike", _genes(lambda symbols, ids: ["KRT8"] * 300), "genes names", REFUSED, but=CARD),
    _odd(
        "spaces around symbols",
        _genes(lambda symbols, ids: [f" {s}" for s in symbols]),
        "genes names",
        REFUSED,
        but=CARD,
    ),
    _odd("a stale alignment", _column("sage_gene", lambda c: c[::-1].to_numpy(), "var"), "genes", SAME),
    _odd("an alignment of text", _column("sage_gene", lambda c: c.astype(str), "var"), "genes", SAME),
    _odd("a report that is text", _set("uns", "sage_genes", lambda old: "text"), "genes", SAME),
    _odd("a gene id that is a category", _column("gene_ids", lambda c: c.astype("category"), "var"), "genes", SAME),
    _odd("gene ids with gaps", _column("gene_ids", _series([1, 5], np.nan), "var"), "genes", SAME, but=REPORTED),
    _odd("one gene", lambda a: a[:, ["KRT8"]].copy(), "counts genes names", REFUSED, but=FEW_GENES),
    _odd("no genes", lambda a: a[:, []].copy(), "counts genes names", REFUSED, but=NO_GENES),
    # Spots.
    _odd("no spots", _spots([]), EVERYTHING, REFUSED),
    _odd("one spot", _spots([50]), EVERYTHING, EITHER, but=NO_GRAPH),
    _odd("14 spots", _spots(list(range(14))), EVERYTHING, EITHER, but=NO_GRAPH),
    _odd("15 spots", _spots(list(range(15))), EVERYTHING, EITHER, but={"pp.neighborhood_graph": FINE}),
    _odd("barcodes that occur twice", _names(lambda n: [n[0], *n[:-1]], "obs_names"), "", SAME),
    _odd("barcodes that are numbers", _names(lambda n: list(range(110)), "obs_names"), "", SAME),
    _odd("empty barcodes", _names(lambda n: [""] * 110, "obs_names"), "", SAME),
    # Coordinates and places on the array.
    _odd("no coordinates", _drop("obsm", "spatial"), "coordinates", REFUSED, "spatial", but={"tl.impute": FINE}),
    _odd("one column of coordinates", _set("obsm", "spatial", lambda c: c[:, :1]), "coordinates", REFUSED),
    _odd("four columns of coordinates", _set("obsm", "spatial", lambda c: np.hstack([c, c])), "coordinates", REFUSED),
    _odd(
        "three dimensions",
        _set("obsm", "spatial", lambda c: np.column_stack([c, np.zeros(len(c))])),
        "coordinates",
        FINE,
        but={"pp.pseudospots": REFUSED},
    ),
    _odd("NaN coordinates", _set("obsm", "spatial", lambda c: _put(c, (3, 0), np.nan)), "coordinates", REFUSED),
    _odd("infinite coordinates", _set("obsm", "spatial", lambda c: _put(c, (3, 0), np.inf)), "coordinates", REFUSED),
    _odd("coordinates of text", _set("obsm", "spatial", lambda c: c.astype(str)), "coordinates", SAME),
    _odd("coordinates of objects", _set("obsm", "spatial", lambda c: c.astype(object)), "coordinates", SAME),
    _odd(
        "words for coordinates",
        _set("obsm", "spatial", lambda c: np.full(c.shape, "here")),
        "coordinates",
        REFUSED,
        "numbers",
    ),
    _odd("whole coordinates", _set("obsm", "spatial", lambda c: np.rint(c).astype(int)), "coordinates", FINE),
    _odd("coordinates in a table", lambda a: _tabulate(a, "spatial"), "coordinates", FINE),
    _odd("sparse coordinates", _set("obsm", "spatial", sparse.csr_matrix), "coordinates", SAME),
    _odd("two spots in one place", _set("obsm", "spatial", lambda c: _put(c, 1, c[0])), "coordinates", FINE),
    _odd("all spots in one place", _set("obsm", "spatial", np.zeros_like), "coordinates", FINE, but=IN_ONE),
    _odd("spots on a line", _set("obsm", "spatial", lambda c: c * [1, 0]), "coordinates", FINE, but=ON_TOP),
    _odd("huge coordinates", _set("obsm", "spatial", lambda c: c * 1e300), "coordinates", REFUSED, "not finite"),
    _odd(
        "coordinates that overflow when squared",
        _set("obsm", "spatial", lambda c: c * 1e160),
        "coordinates",
        REFUSED,
        "not finite",
    ),
    _odd(
        "tiny coordinates",
        _set("obsm", "spatial", lambda c: c * 1e-300),
        "coordinates",
        FINE,
        but={**ON_TOP, **OFF_THE_IMAGE},
    ),
    _odd("float16 coordinates", _set("obsm", "spatial", lambda c: c.astype(np.float16)), "coordinates", FINE),
    _odd("rows and columns exchanged", lambda a: _exchange(a), "array", REFUSED),
    _odd("places on the array as text", _column("array_row", lambda c: c.astype(str)), "array", FINE),
    _odd("places on the array as categories", _column("array_col", lambda c: c.astype("category")), "array", FINE),
    _odd("places on the array with gaps", _column("array_row", _series(4, np.nan)), "array", FINE),
    _odd("places between the array's", _column("array_row", lambda c: c + 0.5), "array", FINE),
    _odd("two spots in one place of the array", _both_columns(lambda c: _put(c, 1, c[0])), "array", REFUSED),
    _odd("negative places", _both_columns(lambda c: c - 200), "array", SAME),
    _odd("huge places", _both_columns(lambda c: c + 2**40), "array", FINE),
    _odd("one row of the array", _column("array_row", lambda c: 0), "array", REFUSED, "share"),
    # Libraries and donors.
    _odd("no such library", _drop("obs", "library"), "library", REFUSED, "library"),
    _odd("a spot of no library", _column("library", _series(3, np.nan)), "library", REFUSED, "missing"),
    _odd(
        "a library of three spots",
        _column("library", _series([0, 1, 2], "tiny")),
        "library",
        REFUSED,
        "tiny",
        but=FEW_SPOTS,
    ),
    _odd("levels that no spot has", _column("library", lambda c: c.cat.add_categories(["none"])), "library", SAME),
    _odd("numbered libraries", _column("library", lambda c: c.cat.codes.astype(int)), "library", FINE),
    _odd("libraries yes or no", _column("library", lambda c: (c == "left").to_numpy()), "library", FINE),
    _odd("no donors", _drop("obs", "donor"), "donors", REFUSED, "donor"),
    _odd("a spot of no donor", _column("donor", _series(3, None)), "donors", REFUSED, "missing"),
    _odd("one donor", _column("donor", lambda c: "a"), "donors", REFUSED, but=NO_SCORES),
    _odd("each spot a donor", _column("donor", lambda c: [f"d{i}" for i in range(len(c))]), "donors", FINE),
    _odd("unused donors", _column("donor", lambda c: c.cat.add_categories(["none"])), "donors", SAME),
    # Graphs.
    _odd("no graph", _drop("obsp", GRAPH), "graph", REFUSED, r"neighborhood_graph\(adata\)"),
    _odd("a graph without neighbours", _set("obsp", GRAPH, lambda g: g * 0), "graph", REFUSED, "connects no spots"),
    _odd("a graph of NaN", _set("obsp", GRAPH, lambda g: _with(g, np.nan)), "graph", REFUSED, "not finite"),
    _odd("a graph with loops", _set("obsp", GRAPH, lambda g: (g + sparse.eye(110)).tocsr()), "graph", SAME),
    _odd("a graph with weights", _set("obsp", GRAPH, lambda g: g * 0.3), "graph", SAME),
    _odd("a graph with negative weights", _set("obsp", GRAPH, lambda g: g * -1), "graph", SAME),
    _odd("a dense graph", _set("obsp", GRAPH, lambda g: g.toarray()), "graph", SAME),
    _odd("a graph by columns", _set("obsp", GRAPH, sparse.csc_matrix), "graph", SAME),
    _odd("a graph of yes and no", _set("obsp", GRAPH, lambda g: g.astype(bool)), "graph", SAME),
    _odd("a graph with unsorted indices", _set("obsp", GRAPH, _unsorted), "graph", SAME),
    _odd("a graph with 64-bit indices", _set("obsp", GRAPH, _long_indices), "graph", SAME),
    _odd("a graph with zeros stored", _set("obsp", GRAPH, _explicit_zeros), "graph", SAME),
    _odd("spots without neighbours", _set("obsp", GRAPH, lambda g: _lonely(g)), "graph", FINE),
    _odd(
        "a complete graph",
        _set("obsp", GRAPH, lambda g: sparse.csr_matrix(np.ones(g.shape))),
        "graph",
        FINE,
        but={"tl.nichepca_embed": REFUSED},
    ),
    _odd("no distances", _drop("obsp", DISTANCES), "distances", FINE),
    _odd("distances of NaN", _set("obsp", DISTANCES, lambda g: _with(g, np.nan)), "distances", FINE),
    _odd("a record that is text", _set("uns", "sage_neighbors", lambda old: "text"), "distances", FINE),
    # Representations, labels, clusters.
    _odd("no embedding", _drop("obsm", EMBEDDING), "embedding", REFUSED, r"sg\.tl\.sage_embed"),
    _odd("NaN in the embedding", _set("obsm", EMBEDDING, lambda x: _put(x, (3, 0), np.nan)), "embedding", REFUSED),
    _odd("inf in the embedding", _set("obsm", EMBEDDING, lambda x: _put(x, (3, 0), np.inf)), "embedding", REFUSED),
    _odd("an embedding of text", _set("obsm", EMBEDDING, lambda x: x.astype(str)), "embedding", REFUSED),
    _odd("an embedding of three axes", _set("obsm", EMBEDDING, lambda x: x[:, :, None]), "embedding", REFUSED),
    _odd("a sparse embedding", _set("obsm", EMBEDDING, sparse.csr_matrix), "embedding", SAME),
    _odd("an embedding in a table", lambda a: _tabulate(a, EMBEDDING), "embedding", FINE),
    _odd(
        "an embedding on dask", _set("obsm", EMBEDDING, lambda x: da.from_array(x, chunks=(50, 5))), "embedding", SAME
    ),
    _odd("a constant embedding", _set("obsm", EMBEDDING, np.ones_like), "embedding", FINE, but={"tl.cluster": REFUSED}),
    _odd("an embedding of one column", _set("obsm", EMBEDDING, lambda x: x[:, :1]), "embedding", FINE),
    _odd("an embedding of no column", _set("obsm", EMBEDDING, lambda x: x[:, :0]), "embedding", REFUSED),
    _odd("a float16 embedding", _set("obsm", EMBEDDING, lambda x: x.astype(np.float16)), "embedding", FINE),
    _odd(
        "a huge embedding", _set("obsm", EMBEDDING, lambda x: x * np.float32(1e37)), "embedding", REFUSED, "too large"
    ),
    _odd("a whole embedding", _set("obsm", EMBEDDING, lambda x: np.rint(x * 100).astype(int)), "embedding", FINE),
    _odd("no labels", _drop("obs", "domain"), "labels", REFUSED, "domain"),
    _odd("labels missing for some", _column("domain", _series([0, 5, 9], np.nan)), "labels", FINE, but=NO_GAPS),
    _odd("labels missing for all", _column("domain", lambda c: np.nan), "labels", REFUSED),
    _odd("one class", _column("domain", lambda c: "tumor"), "labels", REFUSED, but=COUNTED),
    _odd("each spot a class", _column("domain", lambda c: [f"c{i}" for i in range(len(c))]), "labels", FINE),
    _odd("a class of one spot", _column("domain", _series(0, "rare")), "labels", FINE),
    _odd("numbers for labels", _column("domain", lambda c: pd.factorize(c)[0]), "labels", FINE),
    _odd(
        "yes and no for labels",
        _column("domain", lambda c: (c == "tumor").to_numpy()),
        "labels",
        FINE,
        but=THREE_SAMPLES,
    ),
    _odd("labels that no spot has", _column("domain", lambda c: _level(c)), "labels", SAME),
    _odd(
        "a label with a slash",
        _column("domain", lambda c: c.astype(str).replace("tumor", "a/b")),
        "labels",
        FINE,
        but=NAMES,
    ),
    _odd("an empty label", _column("domain", lambda c: c.astype(str).replace("tumor", "")), "labels", FINE, but=NAMES),
    _odd(
        "a label named unsure",
        _column("domain", lambda c: c.astype(str).replace("tumor", "unsure")),
        "labels",
        FINE,
        but=NAMES,
    ),
    _odd("no likelihoods", _drop("obsm", "likelihood"), "likelihood", REFUSED, "likelihood"),
    _odd("likelihoods of NaN", _set("obsm", "likelihood", lambda f: f * np.nan), "likelihood", REFUSED),
    _odd("likelihoods above 1", _set("obsm", "likelihood", lambda f: f * 2), "likelihood", REFUSED, "between 0 and 1"),
    _odd("likelihoods in an array", _set("obsm", "likelihood", lambda f: f.to_numpy()), "likelihood", FINE),
    _odd("likelihoods missing for some", _set("obsm", "likelihood", lambda f: _gap(f)), "likelihood", FINE),
    _odd("one likelihood", _set("obsm", "likelihood", lambda f: f.iloc[:, :1]), "likelihood", REFUSED),
    _odd("no clusters", _drop("obs", "sage_cluster"), "clusters", REFUSED, r"sg\.tl\.cluster\(adata\)"),
    _odd("one cluster", _column("sage_cluster", lambda c: "0"), "clusters", REFUSED, but=DRAWN | COUNTED),
    _odd(
        "each spot a cluster",
        _column("sage_cluster", lambda c: [str(i) for i in range(len(c))]),
        "clusters",
        FINE,
        but={"tl.cluster_markers": REFUSED},
    ),
    _odd("clusters with gaps", _column("sage_cluster", _series(3, np.nan)), "clusters", REFUSED, "missing", but=DRAWN),
    _odd("clusters of numbers", _column("sage_cluster", lambda c: c.astype(int)), "clusters", FINE),
    _odd("no pseudo-spots", _drop("obs", "pseudospot"), "pseudospot", REFUSED, r"sg\.pp\.pseudospots"),
    _odd("pseudo-spots of another slide", _column("pseudospot", lambda c: "elsewhere"), "pseudospot", REFUSED),
    _odd("a record of pseudo-spots that is text", _set("uns", "pseudospot", lambda old: "text"), "pseudospot", FINE),
    # What plots and later tools read.
    _odd("results that are text", lambda a: _texts(a), "screen overlap tables card imputed", REFUSED),
    _odd("results that are empty", lambda a: _empties(a), "screen overlap tables card imputed", REFUSED),
    _odd(
        "tables without a column",
        lambda a: _without_columns(a),
        "screen overlap tables card imputed",
        REFUSED,
        but={"pl.perturbation_overlap": SAME},  # counts alone
    ),
    _odd("tables without a row", lambda a: _without_rows(a), "screen overlap tables card imputed", REFUSED, but=BARE),
    _odd("no predictions", lambda a: _forget(a), "imputed annotation likelihoods", REFUSED, "first"),
]


# --- A trial


@dataclass(frozen=True)
class Outcome:
    """What a function did with an odd slide: right, refused or wrong; and the message, or what is wrong."""

    kind: str
    text: str = ""
    detail: str = ""


class Bench:
    """The plain slide with everything on it, and what each function gives there."""

    def __init__(self) -> None:
        self.plain = plain_slide()
        self.kit = make_kit(self.plain)
        self.returned: dict[str, Any] = {}
        self.written: dict[str, dict[str, Any]] = {}
        for name, function in FUNCTIONS.items():
            self.returned[name] = function.call(self.plain, self.kit)
            # Later functions may add to it.
            self.written[name] = {slot: copy.deepcopy(get(self.plain, slot)) for slot in function.writes}
        self.plain.uns.pop("truth")

    def trial(self, oddity: Oddity, name: str) -> Outcome:
        """Run a function on an odd slide, and judge what it does."""
        function = (FUNCTIONS | PLOTS)[name]
        adata = self.plain.copy()
        changed = oddity.change(adata)
        adata = adata if changed is None else changed
        for slot in function.writes:
            remove(adata, slot)
        before = state(adata)
        expected = oddity.expected(name, function)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.filterwarnings("error", category=RuntimeWarning, module="sagefm")
                returned = function.call(adata, self.kit)
        except Exception as error:  # noqa: BLE001 any of them is judged
            return self._judge_error(error, oddity, expected, differences(before, state(adata)))
        finally:
            plt.close("all")
        if expected == REFUSED:
            return Outcome("wrong", "was taken")
        after = state(adata)
        others = [slot for slot in differences(before, after) if not _written(slot, function)]
        if others:
            return Outcome("wrong", f"changed {others}")
        if expected == SAME and name in FUNCTIONS:
            for slot, value in self.written[name].items():
                if not equal(value, get(adata, slot)):
                    return Outcome("wrong", f"another {slot}")
            if not equal(self.returned[name], returned):
                return Outcome("wrong", "another result")
        for slot in function.writes:
            if gap := gaps(get(adata, slot)):
                return Outcome("wrong", f"{slot} {gap}")
        if gap := gaps(returned):
            return Outcome("wrong", f"result {gap}")
        return Outcome("right")

    def _judge_error(self, error: Exception, oddity: Oddity, expected: str, changed: list[str]) -> Outcome:
        message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
        frames = traceback.extract_tb(error.__traceback__)
        detail = f"{type(error).__name__} at {frames[-1].filename}:{frames[-1].lineno}"
        if changed:
            return Outcome("wrong", f"refused, but changed {changed}", detail)
        if SOURCE not in Path(frames[-1].filename).parents or not isinstance(error, ValueError | TypeError | KeyError):
            return Outcome("wrong", f"{type(error).__name__}: {message}", detail)
        if expected not in (REFUSED, EITHER):
            return Outcome("wrong", f"refused: {message}", detail)
        if not re.search(oddity.match, str(message)):
            return Outcome("wrong", f"message: {message}", detail)
        return Outcome("refused", str(message))


# What a tool may write for the next one, when it is not there yet.
BY_THE_WAY = ("var/sage_gene", "uns/sage_genes", "uns/pseudospot")


def _written(slot: str, function: Function) -> bool:
    return any(f"{name}/".startswith(f"{slot}/") for name in (*function.writes, *BY_THE_WAY))


def get(adata: Any, slot: str) -> Any:
    name, *keys = slot.split("/")
    found = getattr(adata, name)
    for key in keys:
        found = found[key]
    return found


def remove(adata: Any, slot: str) -> None:
    """Forget what an earlier call wrote; the change may have done so already."""
    name, *keys = slot.split("/")
    found = getattr(adata, name)
    for key in keys[:-1]:
        found = found.get(key, {})
    if isinstance(found, str) or keys[-1] not in found:
        return
    del found[keys[-1]]


def state(adata: Any) -> dict[str, str]:
    """Digest of everything in a slide, by slot and key."""
    found = {"X": _digest(adata.X), "names": _digest([list(adata.obs_names), list(adata.var_names)])}
    for slot in ("obs", "var", "obsm", "varm", "layers", "obsp", "varp", "uns"):
        mapping = getattr(adata, slot)
        for key in list(mapping.keys()):
            found[f"{slot}/{key}"] = _digest(mapping[key])
    if adata.raw is not None:
        found["raw"] = _digest(adata.raw.X)
    return found


def _digest(value: Any) -> str:
    """Text that says all of a value."""
    if hasattr(value, "dask"):
        value = value.compute()
    if hasattr(value, "to_memory"):  # on disk
        value = value.to_memory()
    if sparse.issparse(value):
        parts = [_digest(getattr(value, name)) for name in ("data", "indices", "indptr")]
        return f"{value.format} {value.shape} {parts}"
    if isinstance(value, np.ndarray):
        content = value.tolist() if value.dtype == object else hashlib.sha256(value.tobytes()).hexdigest()
        return f"{value.shape} {value.dtype} {content}"
    if isinstance(value, pd.DataFrame):
        dtypes = [str(dtype) for dtype in value.dtypes]
        return f"{_digest(value.index)} {value.columns.tolist()} {dtypes} {value.to_numpy().tolist()}"
    if isinstance(value, pd.Series | pd.Index):
        return f"{value.dtype} {value.tolist()}"
    if isinstance(value, Mapping):
        return str([(key, _digest(part)) for key, part in value.items()])
    return repr(value)


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return sorted(key for key in {*before, *after} if before.get(key) != after.get(key))


def _plain(value: Any) -> Any:
    """As an array where it is one in any form."""
    if hasattr(value, "dask"):
        value = value.compute()
    return value.toarray() if sparse.issparse(value) else value


def equal(a: Any, b: Any, tolerance: float = 1e-5) -> bool:
    """Whether two results are the same, floats within a share of the largest value."""
    a, b = _plain(a), _plain(b)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(equal(a[key], b[key], tolerance) for key in a)
    if isinstance(a, pd.DataFrame):
        return (
            isinstance(b, pd.DataFrame)
            and list(a.columns) == list(b.columns)
            and all(equal(a[key].to_numpy(), b[key].to_numpy(), tolerance) for key in a)
        )
    if isinstance(a, pd.Series | pd.Index | pd.api.extensions.ExtensionArray):
        return equal(np.asarray(a), np.asarray(b), tolerance)
    if isinstance(a, ad.AnnData):
        return equal(a.X, b.X) and equal(a.obs, b.obs) and equal(dict(a.obsm), dict(b.obsm))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(one, other, tolerance) for one, other in zip(a, b, strict=True))
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return False
    if a.dtype.kind == "f" and b.dtype.kind == "f":
        largest = np.abs(a[np.isfinite(a)]).max(initial=0)
        return bool(np.allclose(a, b, rtol=0, atol=tolerance * max(largest, 1e-30), equal_nan=True))
    if a.dtype == object or b.dtype == object:
        return all(x is y or x == y or (x != x and y != y) for x, y in zip(a.ravel(), b.ravel(), strict=True))
    return bool(np.array_equal(a, b))


def gaps(value: Any) -> str:
    """What is wrong with the numbers of a result: infinite ones, or an embedding with gaps."""
    value = _plain(value)
    if isinstance(value, Mapping):
        return next((f"{key}: {gap}" for key, part in value.items() if (gap := gaps(part))), "")
    if isinstance(value, pd.DataFrame):
        return next((f"{key}: {gap}" for key in value if (gap := gaps(value[key].to_numpy()))), "")
    if isinstance(value, ad.AnnData):
        return gaps(value.X)
    array = np.asarray(value) if isinstance(value, np.ndarray | float | np.floating) else np.empty(0)
    if array.dtype.kind == "f" and np.isinf(array).any():
        return "holds infinite values"
    return "is all NaN" if array.dtype.kind == "f" and array.ndim == 2 and array.size and np.isnan(array).all() else ""


def trials(bench: Bench, names: Iterable[str] | None = None) -> Iterator[tuple[Oddity, str, Outcome]]:
    """Every oddity on every function."""
    for oddity in ODDITIES:
        for name in names or (*FUNCTIONS, *PLOTS):
            yield oddity, name, bench.trial(oddity, name)
