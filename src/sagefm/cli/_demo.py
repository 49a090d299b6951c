"""The demo: the main job on a simulated slide, offline."""

from __future__ import annotations

from pathlib import Path

from sagefm import _keys, datasets, pl, pp, tl
from sagefm.cli._files import headless, write_slide


def run(out: Path) -> None:
    """Do the main job on a simulated slide, write slide and figures into a folder, and say what came of it."""
    import numpy as np
    from scanpy.get import obs_df
    from sklearn.metrics import adjusted_rand_score

    from sagefm import benchmark

    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; --out takes a folder.")
    model, genes = "sagefm-mini", ["CD74", "COL1A1"]
    adata = datasets.simulated_visium()
    pp.neighborhood_graph(adata)
    pp.assess(adata, model)
    tl.sage_embed(adata, model)
    tl.cluster(adata)
    tl.impute(adata, None, model)
    tl.perturb_lr(adata, "paper", model)

    out.mkdir(parents=True, exist_ok=True)
    figures = {
        "assessment.png": "the trust card: is the model at home on this slide?",
        "clusters.png": "clusters of the embedding, on the tissue",
        "imputed.png": "genes, measured and predicted",
        "reliability.png": "every gene's correlation, by the model and by the neighbours' mean",
        "perturbed.png": "receptors, when their ligand is raised in the neighbours",
    }
    with headless():
        pl.assessment(adata, save=out / "assessment.png")
        pl.cluster(adata, show=False, save=out / "clusters.png")
        pl.imputation(adata, genes, show=False, save=out / "imputed.png")
        pl.reliability(adata, save=out / "reliability.png")
        pl.perturbation_lollipop(adata, save=out / "perturbed.png")
    write_slide(adata, out / "demo.h5ad")

    agreement = adjusted_rand_score(adata.obs["domain"], adata.obs[_keys.CLUSTER])
    n_clusters = adata.obs[_keys.CLUSTER].nunique()
    measured, predicted = np.log1p(obs_df(adata, genes)), obs_df(adata, genes, layer=_keys.IMPUTED)
    correlations = ", ".join(f"{gene} {r:.2f}" for gene, r in measured.corrwith(predicted).items())
    table = benchmark.evaluate_imputation(adata, model)
    print(f"\nA simulated slide of {adata.n_obs} spots and {adata.n_vars} genes, read by {model}:\n")
    print(f"  trust card  {adata.uns[_keys.ASSESSMENT]['verdict']}")
    print(f"  embedding   {adata.obsm[_keys.EMBEDDING].shape[1]} numbers a spot")
    print(
        f"  clusters    {n_clusters}, where the slide has {adata.obs['domain'].nunique()} domains "
        f"(adjusted Rand index {agreement:.2f}; 1 is perfect, 0 is chance)"
    )
    print(f"  imputation  Pearson r with the measured counts, which the model didn't see: {correlations}")
    scores = adata.uns[_keys.IMPUTED]["reliability"]
    print(
        f"  reliability {scores['reliable'].sum()} of {len(scores)} genes are predicted better than by the neighbours' "
        "mean, scaled by depth"
    )
    pairs = adata.uns[_keys.PERTURB_LR]["results"]
    pairs = pairs[pairs["pval"].notna()]
    print(
        f"  ligands     raised in the neighbours, {(pairs['verdict'] == 'responds').sum()} of {len(pairs)} receptors "
        "respond more than control genes do\n              (no more were expected: the model has never seen a "
        "simulated slide)"
    )
    print("\nWith 30 % of the genes hidden at every spot, beside what needs no model:\n")
    print(f"{'':36s}RMSE   r within the slide, mean over genes")
    for predictor, metrics in table.iterrows():
        print(f"  {predictor:30s} {metrics['rmse']:8.3f}{metrics['r_within']:7.2f}")
    print(f"\nWritten to {out}/:\n")
    print("  demo.h5ad       the slide with all results; open it with anndata.read_h5ad")
    for name, text in figures.items():
        print(f"  {name:15s} {text}")
    print(
        f"\n{model} is a small model for trying things out, trained on real tissue, which a simulated slide is not: "
        "the\nfigures show that the steps work, not how good a model is.\n"
        "Your own slide: sagefm assess SLIDE.h5ad --model sagefm-mini, then\n"
        "sagefm embed SLIDE.h5ad --model sagefm-mini -o OUT.h5ad; without --model the published one (377 MB, once)."
    )
