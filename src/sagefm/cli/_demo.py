"""The demo: the main job on a simulated slide, offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sagefm import _keys, datasets, pl, pp, report, tl
from sagefm._io.files import check_writable
from sagefm.cli._files import headless, write_slide
from sagefm.cli._result import Result

if TYPE_CHECKING:
    from anndata import AnnData

MODEL = "sagefm-mini"
GENES = ["CD74", "COL1A1"]


def run(out: Path) -> Result:
    """Do the main job on a simulated slide, write slide and figures into a folder, and say what came of it."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; --out takes a folder.")
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out / "demo.h5ad")
    adata = datasets.simulated_visium()
    pp.neighborhood_graph(adata)
    pp.assess(adata, MODEL)
    tl.sage_embed(adata, MODEL)
    tl.cluster(adata)
    tl.impute(adata, None, MODEL)
    tl.perturb_lr(adata, "paper", MODEL, store_spots=True)
    with headless():
        pl.assessment(adata, save=out / "assessment.png")
        pl.cluster(adata, show=False, save=out / "clusters.png")
        pl.imputation(adata, GENES, show=False, save=out / "imputed.png")
        pl.reliability(adata, save=out / "reliability.png")
        pl.perturbation_lollipop(adata, save=out / "perturbed.png")
    report(adata, out / "report.html", MODEL, title="The demo's simulated slide")
    write_slide(adata, out / "demo.h5ad")
    text = "\n".join([_summary(adata), _comparison(adata), _files(out)])
    return Result(text, tuple(sorted(out.iterdir())), {"verdict": adata.uns[_keys.ASSESSMENT]["verdict"]})


def _summary(adata: AnnData) -> str:
    """What the slide now holds."""
    import numpy as np
    from scanpy.get import obs_df
    from sklearn.metrics import adjusted_rand_score

    domains, clusters = adata.obs["domain"], adata.obs[_keys.CLUSTER]
    agreement = f"adjusted Rand index {adjusted_rand_score(domains, clusters):.2f}; 1 is perfect, 0 is chance"
    measured, predicted = np.log1p(obs_df(adata, GENES)), obs_df(adata, GENES, layer=_keys.IMPUTED)
    correlations = ", ".join(f"{gene} {r:.2f}" for gene, r in measured.corrwith(predicted).items())
    reliability = adata.uns[_keys.IMPUTED]["reliability"]
    known = reliability[reliability["share"].notna()]
    tested = adata.uns[_keys.PERTURB_LR]["results"].dropna(subset="pval")["verdict"]
    return f"""
A simulated slide of {adata.n_obs} spots and {adata.n_vars} genes, read by {MODEL}:

  trust card  {adata.uns[_keys.ASSESSMENT]["verdict"]} (it was trained on real tissue, not on simulated slides)
  embedding   {adata.obsm[_keys.EMBEDDING].shape[1]} numbers a spot
  clusters    {clusters.nunique()}, where the slide has {domains.nunique()} domains ({agreement})
  imputation  Pearson r with the measured counts, which the model didn't see: {correlations}
  reliability {len(known)} of {len(reliability)} genes vary by more than depth and chance; of these \
{known["reliable"].sum()} are reliable
  ligands     raised in the neighbors, {(tested == "responds").sum()} of {len(tested)} receptors \
respond more than control genes do
              (no more were expected: the model has never seen a simulated slide)
"""


def _comparison(adata: AnnData) -> str:
    """What hidden genes show of the model."""
    from sagefm import benchmark

    rows = "\n".join(
        f"  {predictor:30s} {metrics['rmse']:8.3f}{metrics['r_within']:7.2f}{metrics['r_beyond_depth']:14.2f}"
        for predictor, metrics in benchmark.evaluate_imputation(adata, MODEL).iterrows()
    )
    return f"""With 30 % of the genes hidden at every spot, beside what needs no model:

{"":36s}RMSE      r  r beyond depth
{rows}
"""


def _files(out: Path) -> str:
    """What was written, and how to go on."""
    return f"""Written to {out}/:

  report.html     all of it as one page: open it in a browser
  demo.h5ad       the slide with all results; open it with anndata.read_h5ad
  assessment.png  the trust card: does the model suit this slide?
  clusters.png    clusters of the embedding, on the tissue
  imputed.png     genes, measured and predicted
  reliability.png every gene's correlation beyond depth, against what is attainable
  perturbed.png   receptors, when their ligand is raised in the neighbors

{MODEL} is a small model for trying things out, trained on real tissue, which a simulated slide is not: the
figures show that the steps work, not how good a model is.
Your own slide: sagefm assess SLIDE.h5ad --model {MODEL}, then
sagefm embed SLIDE.h5ad --model {MODEL} -o OUT.h5ad; without --model the published one (377 MB, once)."""
