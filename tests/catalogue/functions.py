"""The plain slide, and every function that takes one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import anndata as ad
import numpy as np
import pandas as pd
import torch
from PIL import Image

import sagefm as sg
from sagefm.models._vocabulary import Vocabulary, hest1k
from sagefm.tl._labels import classifiers

SAME, FINE, REFUSED, EITHER = "same", "fine", "refused", "either"


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
    "pp.quality_control": _function(
        lambda a, k: sg.pp.quality_control(a), "obs/sage_quality obsm/sage_quality uns/sage_quality", "counts graph"
    ),
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
        lambda a, k: sg.tl.perturb_targets(a, {"CXCL12": ["CXCR4", "KRT8"]}, k.model, n_controls=5, device="cpu"),
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
        "obs/sage_annotation obs/sage_annotation_confidence obsm/sage_annotation uns/sage_annotation",
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
    "pl.target_replicates": _function(lambda a, k: sg.pl.target_replicates(a), reads="tables"),
    "pl.target_effects": _function(lambda a, k: sg.pl.target_effects(a), reads="tables"),
    "pl.tsne": _function(lambda a, k: sg.pl.tsne(a, color="domain", n_spots=20, show=False), reads="embedding labels"),
}
