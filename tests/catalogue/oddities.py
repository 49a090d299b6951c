"""Bad and odd slides, and what functions have to do with each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
from scipy import sparse

from catalogue.changes import (
    all_read_only,
    backed,
    both_columns,
    column,
    counts,
    dense,
    doubled_gene,
    drop,
    empties,
    exchange,
    explicit_zeros,
    forget,
    gap,
    genes,
    hidden,
    into_raw,
    level,
    lonely,
    long_indices,
    names,
    put,
    read_only,
    replaced,
    round_trip,
    scaled,
    series,
    spots,
    tabulate,
    texts,
    twice,
    unsorted,
    view,
    with_value,
    without_columns,
    without_rows,
)
from catalogue.functions import EITHER, FINE, REFUSED, SAME, Function


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


def odd(
    name: str,
    change: Callable[[ad.AnnData], Any],
    spoils: str,
    expect: str,
    match: str = "",
    but: Mapping[str, str] | None = None,
) -> Oddity:
    return Oddity(name, change, frozenset(spoils.split()), expect, match, but or {})


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
    "pp.quality_control": FINE,
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
    odd("counts in CSC", counts(sparse.csc_matrix), "counts", SAME),
    odd("counts in a sparse array", counts(sparse.csr_array), "counts", SAME),
    odd("counts in a sparse array by columns", counts(sparse.csc_array), "counts", SAME),
    odd("dense counts", dense(np.asarray), "counts", SAME),
    odd("dense counts by columns", dense(np.asfortranarray), "counts", SAME),
    odd("dense float64", dense(lambda X: X.astype(np.float64)), "counts", SAME),
    odd("dense float16", dense(lambda X: X.astype(np.float16)), "counts", SAME),
    odd("dense uint16", dense(lambda X: X.astype(np.uint16)), "counts", SAME),
    odd("big-endian counts", dense(lambda X: X.astype(">f4")), "counts", SAME),
    odd("long double", dense(lambda X: X.astype(np.longdouble)), "counts", SAME),
    odd("float64", counts(lambda X: X.astype(np.float64)), "counts", SAME),
    odd("int32", counts(lambda X: X.astype(np.int32)), "counts", SAME),
    odd("int64", counts(lambda X: X.astype(np.int64)), "counts", SAME),
    odd("uint64", counts(lambda X: X.astype(np.uint64)), "counts", SAME),
    odd("unsorted indices", counts(unsorted), "counts", SAME),
    odd("entries stored in two parts", counts(twice), "counts", SAME),
    odd("zeros that are stored", counts(explicit_zeros), "counts", SAME),
    odd("64-bit indices", counts(long_indices), "counts", SAME),
    odd("negative zeros", dense(lambda X: np.where(X == 0, -0.0, X)), "counts", SAME),
    odd("read-only arrays", all_read_only, "counts graph embedding", SAME),
    odd("read-only dense counts", dense(read_only), "counts", SAME),
    odd("dask array", dense(lambda X: da.from_array(X, chunks=(37, 50))), "counts", SAME),
    odd(
        "dask array of sparse blocks",
        counts(lambda X: da.from_array(X, chunks=(40, -1), asarray=False)),
        "counts",
        SAME,
    ),
    odd("a view", view, "counts", SAME, but={"pp.pseudospots": FINE}),
    odd("a backed file", backed("r"), "counts", SAME),
    odd("a backed file that can be written", backed("r+"), "counts", SAME),
    odd("read from .h5ad", round_trip(".h5ad"), EVERYTHING, SAME),
    odd("read from .zarr", round_trip(".zarr"), EVERYTHING, SAME),
    odd("a gene in two columns", doubled_gene, "", SAME),
    # Counts that are none.
    odd("bool", counts(lambda X: X.astype(bool)), "counts", FINE),
    odd("a negative count", counts(lambda X: with_value(X, -1)), "counts", REFUSED, "negative"),
    odd("NaN", counts(lambda X: with_value(X, np.nan)), "counts", REFUSED, "not finite"),
    odd("inf", counts(lambda X: with_value(X, np.inf)), "counts", REFUSED, "not finite"),
    odd("minus inf", counts(lambda X: with_value(X, -np.inf)), "counts", REFUSED, "negative"),
    odd("NaN in the last spot", counts(lambda X: with_value(X, np.nan, 109)), "counts", REFUSED, "not finite"),
    odd("log1p", counts(lambda X: X.log1p()), "counts", REFUSED, "not counts"),
    odd("shares", counts(lambda X: X.multiply(1e4 / X.sum(axis=1)).tocsr()), "counts", REFUSED, "not counts"),
    odd("scaled", dense(scaled), "counts", REFUSED, "negative"),
    odd("log1p, counts in a layer", hidden, "counts", REFUSED, "layer='counts'"),
    odd("log1p, counts in raw", into_raw, "counts", REFUSED, r"adata\.raw"),
    odd("a huge int64", counts(lambda X: with_value(X.astype(np.int64), 2**62)), "counts", REFUSED, "overflowed"),
    odd(
        "the largest uint64",
        counts(lambda X: with_value(X.astype(np.uint64), 2**64 - 1)),
        "counts",
        REFUSED,
        "overflowed",
    ),
    odd(
        "the largest float32",
        counts(lambda X: with_value(X, np.finfo(np.float32).max)),
        "counts",
        REFUSED,
        "overflowed",
    ),
    odd("two billion", counts(lambda X: with_value(X, 2.0**31)), "counts", FINE),
    odd("beyond float32", counts(lambda X: with_value(X.astype(np.float64), 1e39)), "counts", REFUSED, "overflowed"),
    odd("complex", dense(lambda X: X.astype(np.complex64)), "counts", REFUSED, "complex64"),
    odd("objects", dense(lambda X: X.astype(object)), "counts", REFUSED, "object"),
    odd("text", dense(lambda X: X.astype(int).astype(str)), "counts", REFUSED, "type"),
    odd("a masked array", dense(np.ma.array), "counts", REFUSED, "masked"),
    odd("no X", lambda a: setattr(a, "X", None), "counts", REFUSED, "X is empty"),
    odd("a spot without counts", dense(lambda X: put(X, 7, 0)), "counts", FINE),
    odd("a neighborhood without counts", dense(lambda X: put(X, slice(0, 60), 0)), "counts", FINE),
    odd("a gene without counts", dense(lambda X: put(X, (slice(None), 3), 0)), "counts", FINE),
    odd("one count in all", dense(lambda X: put(np.zeros_like(X), (0, 0), 1)), "counts", FINE, but=TOO_FEW),
    odd("no counts at all", dense(np.zeros_like), "counts", FINE, but=TOO_FEW),
    odd("all spots alike", dense(lambda X: np.tile(X[:1], (len(X), 1))), "counts", FINE, but=NO_EMBEDDING),
    odd("all values one", dense(np.ones_like), "counts", FINE, but=NO_EMBEDDING),
    # Genes.
    odd("Ensembl ids", genes(lambda symbols, ids: ids), "genes", SAME, but=REPORTED),
    odd("Ensembl ids with versions", genes(lambda symbols, ids: [f"{i}.7" for i in ids]), "genes", SAME, but=REPORTED),
    odd(
        "symbols and Ensembl ids mixed",
        genes(lambda symbols, ids: [*symbols[:100], *ids[100:]]),
        "genes",
        SAME,
        but=REPORTED,
    ),
    odd(
        "mouse symbols",
        genes(lambda symbols, ids: [s.capitalize() for s in symbols]),
        "genes names",
        REFUSED,
        "mouse",
        but=CARD,
    ),
    odd("small letters", genes(lambda symbols, ids: [s.lower() for s in symbols]), "genes names", REFUSED, but=CARD),
    odd(
        "numbers for genes", genes(lambda symbols, ids: [str(i) for i in range(300)]), "genes names", REFUSED, but=CARD
    ),
    odd("empty names", genes(lambda symbols, ids: ["", *symbols[1:]]), "genes", FINE),
    odd("all names alike", genes(lambda symbols, ids: ["KRT8"] * 300), "genes names", REFUSED, but=CARD),
    odd(
        "spaces around symbols",
        genes(lambda symbols, ids: [f" {s}" for s in symbols]),
        "genes names",
        REFUSED,
        but=CARD,
    ),
    odd("a stale alignment", column("sage_gene", lambda c: c[::-1].to_numpy(), "var"), "genes", SAME),
    odd("an alignment of text", column("sage_gene", lambda c: c.astype(str), "var"), "genes", SAME),
    odd("a report that is text", replaced("uns", "sage_genes", lambda old: "text"), "genes", SAME),
    odd("a gene id that is a category", column("gene_ids", lambda c: c.astype("category"), "var"), "genes", SAME),
    odd("gene ids with gaps", column("gene_ids", series([1, 5], np.nan), "var"), "genes", SAME, but=REPORTED),
    odd("one gene", lambda a: a[:, ["KRT8"]].copy(), "counts genes names", REFUSED, but=FEW_GENES),
    odd("no genes", lambda a: a[:, []].copy(), "counts genes names", REFUSED, but=NO_GENES),
    # Spots.
    odd("no spots", spots([]), EVERYTHING, REFUSED),
    odd("one spot", spots([50]), EVERYTHING, EITHER, but=NO_GRAPH),
    odd("14 spots", spots(list(range(14))), EVERYTHING, EITHER, but=NO_GRAPH),
    odd("15 spots", spots(list(range(15))), EVERYTHING, EITHER, but={"pp.neighborhood_graph": FINE}),
    odd("barcodes that occur twice", names(lambda n: [n[0], *n[:-1]], "obs_names"), "", SAME),
    odd("barcodes that are numbers", names(lambda n: list(range(110)), "obs_names"), "", SAME),
    odd("empty barcodes", names(lambda n: [""] * 110, "obs_names"), "", SAME),
    # Coordinates and places on the array.
    odd("no coordinates", drop("obsm", "spatial"), "coordinates", REFUSED, "spatial", but={"tl.impute": FINE}),
    odd("one column of coordinates", replaced("obsm", "spatial", lambda c: c[:, :1]), "coordinates", REFUSED),
    odd(
        "four columns of coordinates", replaced("obsm", "spatial", lambda c: np.hstack([c, c])), "coordinates", REFUSED
    ),
    odd(
        "three dimensions",
        replaced("obsm", "spatial", lambda c: np.column_stack([c, np.zeros(len(c))])),
        "coordinates",
        FINE,
        but={"pp.pseudospots": REFUSED},
    ),
    odd("NaN coordinates", replaced("obsm", "spatial", lambda c: put(c, (3, 0), np.nan)), "coordinates", REFUSED),
    odd("infinite coordinates", replaced("obsm", "spatial", lambda c: put(c, (3, 0), np.inf)), "coordinates", REFUSED),
    odd("coordinates of text", replaced("obsm", "spatial", lambda c: c.astype(str)), "coordinates", SAME),
    odd("coordinates of objects", replaced("obsm", "spatial", lambda c: c.astype(object)), "coordinates", SAME),
    odd(
        "words for coordinates",
        replaced("obsm", "spatial", lambda c: np.full(c.shape, "here")),
        "coordinates",
        REFUSED,
        "numbers",
    ),
    odd("whole coordinates", replaced("obsm", "spatial", lambda c: np.rint(c).astype(int)), "coordinates", FINE),
    odd("coordinates in a table", lambda a: tabulate(a, "spatial"), "coordinates", FINE),
    odd("sparse coordinates", replaced("obsm", "spatial", sparse.csr_matrix), "coordinates", SAME),
    odd("two spots in one place", replaced("obsm", "spatial", lambda c: put(c, 1, c[0])), "coordinates", FINE),
    odd("all spots in one place", replaced("obsm", "spatial", np.zeros_like), "coordinates", FINE, but=IN_ONE),
    odd("spots on a line", replaced("obsm", "spatial", lambda c: c * [1, 0]), "coordinates", FINE, but=ON_TOP),
    odd("huge coordinates", replaced("obsm", "spatial", lambda c: c * 1e300), "coordinates", REFUSED, "not finite"),
    odd(
        "coordinates that overflow when squared",
        replaced("obsm", "spatial", lambda c: c * 1e160),
        "coordinates",
        REFUSED,
        "not finite",
    ),
    odd(
        "tiny coordinates",
        replaced("obsm", "spatial", lambda c: c * 1e-300),
        "coordinates",
        FINE,
        but={**ON_TOP, **OFF_THE_IMAGE},
    ),
    odd("float16 coordinates", replaced("obsm", "spatial", lambda c: c.astype(np.float16)), "coordinates", FINE),
    odd("rows and columns exchanged", lambda a: exchange(a), "array", REFUSED),
    odd("places on the array as text", column("array_row", lambda c: c.astype(str)), "array", FINE),
    odd("places on the array as categories", column("array_col", lambda c: c.astype("category")), "array", FINE),
    odd("places on the array with gaps", column("array_row", series(4, np.nan)), "array", FINE),
    odd("places between the array's", column("array_row", lambda c: c + 0.5), "array", FINE),
    odd("two spots in one place of the array", both_columns(lambda c: put(c, 1, c[0])), "array", REFUSED),
    odd("negative places", both_columns(lambda c: c - 200), "array", SAME),
    odd("huge places", both_columns(lambda c: c + 2**40), "array", FINE),
    odd("one row of the array", column("array_row", lambda c: 0), "array", REFUSED, "share"),
    # Libraries and donors.
    odd("no such library", drop("obs", "library"), "library", REFUSED, "library"),
    odd("a spot of no library", column("library", series(3, np.nan)), "library", REFUSED, "missing"),
    odd(
        "a library of three spots",
        column("library", series([0, 1, 2], "tiny")),
        "library",
        REFUSED,
        "tiny",
        but=FEW_SPOTS,
    ),
    odd("levels that no spot has", column("library", lambda c: c.cat.add_categories(["none"])), "library", SAME),
    odd("numbered libraries", column("library", lambda c: c.cat.codes.astype(int)), "library", FINE),
    odd("libraries yes or no", column("library", lambda c: (c == "left").to_numpy()), "library", FINE),
    odd("no donors", drop("obs", "donor"), "donors", REFUSED, "donor"),
    odd("a spot of no donor", column("donor", series(3, None)), "donors", REFUSED, "missing"),
    odd("one donor", column("donor", lambda c: "a"), "donors", REFUSED, but=NO_SCORES),
    odd("each spot a donor", column("donor", lambda c: [f"d{i}" for i in range(len(c))]), "donors", FINE),
    odd("unused donors", column("donor", lambda c: c.cat.add_categories(["none"])), "donors", SAME),
    # Graphs.
    odd("no graph", drop("obsp", GRAPH), "graph", REFUSED, r"neighborhood_graph\(adata\)"),
    odd("a graph without neighbors", replaced("obsp", GRAPH, lambda g: g * 0), "graph", REFUSED, "connects no spots"),
    odd("a graph of NaN", replaced("obsp", GRAPH, lambda g: with_value(g, np.nan)), "graph", REFUSED, "not finite"),
    odd("a graph with loops", replaced("obsp", GRAPH, lambda g: (g + sparse.eye(110)).tocsr()), "graph", SAME),
    odd("a graph with weights", replaced("obsp", GRAPH, lambda g: g * 0.3), "graph", SAME),
    odd("a graph with negative weights", replaced("obsp", GRAPH, lambda g: g * -1), "graph", SAME),
    odd("a dense graph", replaced("obsp", GRAPH, lambda g: g.toarray()), "graph", SAME),
    odd("a graph by columns", replaced("obsp", GRAPH, sparse.csc_matrix), "graph", SAME),
    odd("a graph of yes and no", replaced("obsp", GRAPH, lambda g: g.astype(bool)), "graph", SAME),
    odd("a graph with unsorted indices", replaced("obsp", GRAPH, unsorted), "graph", SAME),
    odd("a graph with 64-bit indices", replaced("obsp", GRAPH, long_indices), "graph", SAME),
    odd("a graph with zeros stored", replaced("obsp", GRAPH, explicit_zeros), "graph", SAME),
    odd("spots without neighbors", replaced("obsp", GRAPH, lambda g: lonely(g)), "graph", FINE),
    odd(
        "a complete graph",
        replaced("obsp", GRAPH, lambda g: sparse.csr_matrix(np.ones(g.shape))),
        "graph",
        FINE,
        but={"tl.nichepca_embed": REFUSED},
    ),
    odd("no distances", drop("obsp", DISTANCES), "distances", FINE),
    odd("distances of NaN", replaced("obsp", DISTANCES, lambda g: with_value(g, np.nan)), "distances", FINE),
    odd("a record that is text", replaced("uns", "sage_neighbors", lambda old: "text"), "distances", FINE),
    # Representations, labels, clusters.
    odd("no embedding", drop("obsm", EMBEDDING), "embedding", REFUSED, r"sg\.tl\.sage_embed"),
    odd("NaN in the embedding", replaced("obsm", EMBEDDING, lambda x: put(x, (3, 0), np.nan)), "embedding", REFUSED),
    odd("inf in the embedding", replaced("obsm", EMBEDDING, lambda x: put(x, (3, 0), np.inf)), "embedding", REFUSED),
    odd("an embedding of text", replaced("obsm", EMBEDDING, lambda x: x.astype(str)), "embedding", REFUSED),
    odd("an embedding of three axes", replaced("obsm", EMBEDDING, lambda x: x[:, :, None]), "embedding", REFUSED),
    odd("a sparse embedding", replaced("obsm", EMBEDDING, sparse.csr_matrix), "embedding", SAME),
    odd("an embedding in a table", lambda a: tabulate(a, EMBEDDING), "embedding", FINE),
    odd(
        "an embedding on dask",
        replaced("obsm", EMBEDDING, lambda x: da.from_array(x, chunks=(50, 5))),
        "embedding",
        SAME,
    ),
    odd(
        "a constant embedding",
        replaced("obsm", EMBEDDING, np.ones_like),
        "embedding",
        FINE,
        but={"tl.cluster": REFUSED},
    ),
    odd("an embedding of one column", replaced("obsm", EMBEDDING, lambda x: x[:, :1]), "embedding", FINE),
    odd("an embedding of no column", replaced("obsm", EMBEDDING, lambda x: x[:, :0]), "embedding", REFUSED),
    odd("a float16 embedding", replaced("obsm", EMBEDDING, lambda x: x.astype(np.float16)), "embedding", FINE),
    odd(
        "a huge embedding",
        replaced("obsm", EMBEDDING, lambda x: x * np.float32(1e37)),
        "embedding",
        REFUSED,
        "too large",
    ),
    odd("a whole embedding", replaced("obsm", EMBEDDING, lambda x: np.rint(x * 100).astype(int)), "embedding", FINE),
    odd("no labels", drop("obs", "domain"), "labels", REFUSED, "domain"),
    odd("labels missing for some", column("domain", series([0, 5, 9], np.nan)), "labels", FINE, but=NO_GAPS),
    odd("labels missing for all", column("domain", lambda c: np.nan), "labels", REFUSED),
    odd("one class", column("domain", lambda c: "tumor"), "labels", REFUSED, but=COUNTED),
    odd("each spot a class", column("domain", lambda c: [f"c{i}" for i in range(len(c))]), "labels", FINE),
    odd("a class of one spot", column("domain", series(0, "rare")), "labels", FINE),
    odd("numbers for labels", column("domain", lambda c: pd.factorize(c)[0]), "labels", FINE),
    odd(
        "yes and no for labels",
        column("domain", lambda c: (c == "tumor").to_numpy()),
        "labels",
        FINE,
        but=THREE_SAMPLES,
    ),
    odd("labels that no spot has", column("domain", lambda c: level(c)), "labels", SAME),
    odd(
        "a label with a slash",
        column("domain", lambda c: c.astype(str).replace("tumor", "a/b")),
        "labels",
        FINE,
        but=NAMES,
    ),
    odd("an empty label", column("domain", lambda c: c.astype(str).replace("tumor", "")), "labels", FINE, but=NAMES),
    odd(
        "a label named unsure",
        column("domain", lambda c: c.astype(str).replace("tumor", "unsure")),
        "labels",
        FINE,
        but=NAMES,
    ),
    odd("no likelihoods", drop("obsm", "likelihood"), "likelihood", REFUSED, "likelihood"),
    odd("likelihoods of NaN", replaced("obsm", "likelihood", lambda f: f * np.nan), "likelihood", REFUSED),
    odd(
        "likelihoods above 1", replaced("obsm", "likelihood", lambda f: f * 2), "likelihood", REFUSED, "between 0 and 1"
    ),
    odd("likelihoods in an array", replaced("obsm", "likelihood", lambda f: f.to_numpy()), "likelihood", FINE),
    odd("likelihoods missing for some", replaced("obsm", "likelihood", lambda f: gap(f)), "likelihood", FINE),
    odd("one likelihood", replaced("obsm", "likelihood", lambda f: f.iloc[:, :1]), "likelihood", REFUSED),
    odd("no clusters", drop("obs", "sage_cluster"), "clusters", REFUSED, r"sg\.tl\.cluster\(adata\)"),
    odd("one cluster", column("sage_cluster", lambda c: "0"), "clusters", REFUSED, but=DRAWN | COUNTED),
    odd(
        "each spot a cluster",
        column("sage_cluster", lambda c: [str(i) for i in range(len(c))]),
        "clusters",
        FINE,
        but={"tl.cluster_markers": REFUSED},
    ),
    odd("clusters with gaps", column("sage_cluster", series(3, np.nan)), "clusters", REFUSED, "missing", but=DRAWN),
    odd("clusters of numbers", column("sage_cluster", lambda c: c.astype(int)), "clusters", FINE),
    odd("no pseudo-spots", drop("obs", "pseudospot"), "pseudospot", REFUSED, r"sg\.pp\.pseudospots"),
    odd("pseudo-spots of another slide", column("pseudospot", lambda c: "elsewhere"), "pseudospot", REFUSED),
    odd("a record of pseudo-spots that is text", replaced("uns", "pseudospot", lambda old: "text"), "pseudospot", FINE),
    # What plots and later tools read.
    odd("results that are text", lambda a: texts(a), "screen overlap tables card imputed", REFUSED),
    odd("results that are empty", lambda a: empties(a), "screen overlap tables card imputed", REFUSED),
    odd(
        "tables without a column",
        lambda a: without_columns(a),
        "screen overlap tables card imputed",
        REFUSED,
        but={"pl.perturbation_overlap": SAME},  # counts alone
    ),
    odd("tables without a row", lambda a: without_rows(a), "screen overlap tables card imputed", REFUSED, but=BARE),
    odd("no predictions", lambda a: forget(a), "imputed annotation likelihoods", REFUSED, "first"),
]
