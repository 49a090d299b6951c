"""Time and memory of embeddings of one slide: ours, novae, NichePCA, MOFA, scVI; prints one line of JSON.

    python benchmarks/rivals.py {mini,published,novae,nichepca,mofa,scvi} SLIDE.h5ad [--runs 3]

One job a process, on the CPU, from raw counts in memory; libraries talk on stderr. All but novae and scvi
run with the environment of sagefm, these with one of their own (torch first, or pip brings CUDA):

    pip install torch==2.13.0 && echo torch==2.13.0 > constraints.txt
    pip install novae==1.1.2 scvi-tools==1.4.2 -c constraints.txt

novae has random weights in the published size: its time is right, its embedding means nothing. ``seconds`` is the sum
of ``parts``. scVI trains for a few epochs; the time of its default number is derived, in ``notes``.
"""

import argparse
import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import anndata as ad
import numpy as np

# What novae's published human model has: the genes of scGPT, 512 dimensions each, all else by default.
NOVAE_GENES, NOVAE_SIZE = 60_697, 512
# As many genes as MOFA gets, the usual advice for scVI; and epochs enough to tell the time of one.
SCVI_GENES, SCVI_EPOCHS = 2_000, 10

Run = Callable[[ad.AnnData], dict[str, float]]
"""Embeds a fresh copy of the slide and tells the seconds of each part."""


def timed(job: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    start = time.perf_counter()
    job(*args, **kwargs)
    return time.perf_counter() - start


def stopwatch(owner: Any, name: str) -> list[float]:
    """Seconds of every later call of a function inside a library."""
    function, seconds = getattr(owner, name), []

    def watched(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - start)

    setattr(owner, name, watched)
    return seconds


def prepare_novae(adata: ad.AnnData, notes: dict[str, Any]) -> Run:
    import novae
    from novae.utils import _validate

    genes = list(dict.fromkeys(adata.var_names.str.lower()))
    genes += [f"not on the slide {i}" for i in range(NOVAE_GENES - len(genes))]
    model = novae.Novae(var_names=genes, embedding_size=NOVAE_SIZE)
    notes["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    for name in ("embedding_size", "hidden_size", "num_layers", "heads", "output_size", "batch_size", "num_prototypes"):
        notes[name] = model.hparams[name]
    notes["views"] = f"1, of {model.hparams['n_hops_local']} hops (the second view is for training)"
    notes["weights"] = f"random; every gene of the slide is among the {len(genes)} known ones"
    notes["not_counted"] = "loading the model; prototypes_seconds, the k-means that zero_shot=True adds for domains"
    notes["prototypes_seconds"] = []
    preparing, looking_up = stopwatch(model, "_prepare_adatas"), stopwatch(_validate, "_lookup_known_genes")

    def run(slide: ad.AnnData) -> dict[str, float]:
        model.mode.as_pretrained()  # what from_pretrained does once the weights are there
        graph = timed(novae.spatial_neighbors, slide, technology="visium")
        represent = timed(model.compute_representations, slide)
        if slide.obs["neighborhood_valid"].sum() >= model.hparams["num_prototypes"]:
            seconds = timed(model.assign_to_kmeans_prototypes, [slide], "all")
            notes["prototypes_seconds"].append(round(seconds, 3))
        notes["genes_used"] = int(slide.var["novae_use_gene"].sum())
        notes["spots_embedded"] = int(slide.obs["neighborhood_valid"].sum())
        check(slide.obsm["novae_latent"], notes)
        prepare, look_up = preparing[-1], looking_up[-1]
        return {
            "graph": graph,
            "preprocessing": prepare - look_up,
            "gene_lookup": look_up,
            "representations": represent - prepare,
        }

    return run


def prepare_sagefm(adata: ad.AnnData, notes: dict[str, Any], size: str) -> Run:
    import torch

    import sagefm as sg

    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    if size == "mini":
        model = sg.models.load("sagefm-mini")
    else:
        torch.manual_seed(0)
        network = sg.models.GCN(14558)
        model = sg.models.Model("random, published size", network, sg.models.load("sagefm-mini").vocabulary)
    notes["parameters"], notes["neighbors"] = model.n_parameters, 14

    def run(slide: ad.AnnData) -> dict[str, float]:
        graph = timed(sg.pp.neighborhood_graph, slide)
        embed = timed(sg.tl.sage_embed, slide, model, device="cpu")
        notes["genes_used"] = int((slide.var["sage_gene"] >= 0).sum())
        check(slide.obsm["X_sage"], notes)
        return {"graph": graph, "embedding": embed}

    return run


def prepare_nichepca(adata: ad.AnnData, notes: dict[str, Any]) -> Run:
    import sagefm as sg

    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    notes["genes_used"], notes["neighbors"] = adata.n_vars, 14

    def run(slide: ad.AnnData) -> dict[str, float]:
        graph = timed(sg.pp.neighborhood_graph, slide)
        embed = timed(sg.tl.nichepca_embed, slide)
        check(slide.obsm["X_nichepca"], notes)
        return {"graph": graph, "embedding": embed}

    return run


def prepare_mofa(adata: ad.AnnData, notes: dict[str, Any]) -> Run:
    import muon  # noqa: F401 imports are not charged to anyone
    from mofapy2.run.entry_point import entry_point  # noqa: F401

    import sagefm as sg

    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    sg.tl.mofa_embed(adata.copy(), n_iterations=2)
    notes["mofapy2"] = version("mofapy2")

    def run(slide: ad.AnnData) -> dict[str, float]:
        embed = timed(sg.tl.mofa_embed, slide)
        notes["genes_used"] = len(slide.uns["X_mofa"]["weights"])
        notes["most_iterations"] = slide.uns["X_mofa"]["params"]["n_iterations"]
        check(slide.obsm["X_mofa"], notes)
        return {"embedding": embed}

    return run


def prepare_scvi(adata: ad.AnnData, notes: dict[str, Any]) -> Run:
    import scanpy as sc
    from scvi.model import SCVI
    from scvi.model._utils import get_max_epochs_heuristic

    notes["epochs_run"], notes["epochs_by_default"] = SCVI_EPOCHS, get_max_epochs_heuristic(adata.n_obs)
    notes["genes_used"] = min(SCVI_GENES, adata.n_vars)

    def run(slide: ad.AnnData) -> dict[str, float]:
        start = time.perf_counter()
        logs = slide.copy()
        sc.pp.normalize_total(logs)
        sc.pp.log1p(logs)
        sc.pp.highly_variable_genes(logs, n_top_genes=notes["genes_used"])
        slide = slide[:, logs.var["highly_variable"]].copy()
        SCVI.setup_anndata(slide)
        model = SCVI(slide)
        preprocessing = time.perf_counter() - start
        training = timed(model.train, SCVI_EPOCHS, accelerator="cpu", enable_progress_bar=False)
        notes["parameters"] = sum(parameter.numel() for parameter in model.module.parameters())
        start = time.perf_counter()
        check(model.get_latent_representation(), notes)
        return {"preprocessing": preprocessing, "training": training, "latent": time.perf_counter() - start}

    return run


def check(embedding: np.ndarray, notes: dict[str, Any]) -> None:
    if not np.isfinite(embedding).all():
        raise ValueError("the embedding is not finite.")
    notes["embedding_shape"] = list(embedding.shape)


JOBS = {
    "published": (partial(prepare_sagefm, size="published"), "sagefm"),
    "mini": (partial(prepare_sagefm, size="mini"), "sagefm"),
    "novae": (prepare_novae, "novae"),
    "nichepca": (prepare_nichepca, "sagefm"),
    "mofa": (prepare_mofa, "sagefm"),
    "scvi": (prepare_scvi, "scvi-tools"),
}


def measure(job: str, slide: str, runs: int) -> dict[str, Any]:
    import torch

    prepare, package = JOBS[job]
    full = ad.read_h5ad(slide)
    adata = ad.AnnData(full.X, full.obs[[]], full.var[[]], obsm={"spatial": full.obsm["spatial"]})
    del full
    notes: dict[str, Any] = {}
    run = prepare(adata, notes)
    if job != "mofa":  # it has warmed up with two iterations
        run(adata.copy())
    notes.get("prototypes_seconds", []).clear()
    load, parts = os.getloadavg()[0], [run(adata.copy()) for _ in range(runs)]
    if job == "scvi":
        epoch = float(np.median([part["training"] for part in parts])) / SCVI_EPOCHS
        around = float(np.median([part["preprocessing"] + part["latent"] for part in parts]))
        notes["seconds_per_epoch"] = round(epoch, 4)
        notes["derived_seconds_at_default_epochs"] = round(epoch * notes["epochs_by_default"] + around, 1)
    return {
        "job": job,
        "package": package,
        "version": version(package),
        "n_spots": adata.n_obs,
        "n_genes": adata.n_vars,
        "seconds": [round(sum(part.values()), 3) for part in parts],
        "parts": {name: [round(part[name], 3) for part in parts] for name in parts[0]},
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "threads": torch.get_num_threads(),
        "load_before": round(load, 2),
        "notes": notes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=list(JOBS))
    parser.add_argument("slide", metavar="SLIDE.h5ad")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        result = measure(args.job, args.slide, args.runs)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
