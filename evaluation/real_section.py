"""The figure of a real section that the model hasn't seen: CRC_16 (Galeano Niño et al. 2022).

python evaluation/real_section.py SECTIONS [--out docs/_static/real_section.png]

The model is mini's recipe, trained without this donor and two others.
"""

import argparse
import sys
from pathlib import Path

import anndata as ad
from left_out import model_without

import sagefm as sg

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from figures import overview, save

GENES = ("EPCAM", "COL1A1")


def main() -> None:
    """Run the quickstart on the section and draw what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/_static/real_section.png"))
    arguments = parser.parse_args()
    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    model = model_without("CRC_16", arguments.sections)
    adata = ad.read_h5ad(arguments.sections / "CRC_16.h5ad")
    sg.pp.neighborhood_graph(adata)
    sg.tl.sage_embed(adata, model)
    sg.tl.cluster(adata)
    sg.tl.cluster_markers(adata)
    sg.tl.impute(adata, None, model)
    sg.tl.perturb_lr(adata, "paper", model)
    scores = adata.uns["sage_imputed"]["reliability"]
    markers = adata.uns["sage_cluster_markers"]["results"]
    found = (
        markers[markers["log2_fold_change"] > 0].groupby("cluster", observed=True)["gene"].apply(lambda x: list(x[:6]))
    )
    print(found.to_string())
    shown = ["r", "r_beyond_depth", "neighbors_r_beyond_depth", "attainable_r", "reliable"]
    print(scores.loc[list(GENES), shown].round(3))
    known = scores[scores["share"].notna() & scores["testable"]]
    print(f"{len(known)} genes have something to predict beyond depth, {known['reliable'].sum()} are reliable")
    print(sg.benchmark.evaluate_imputation(adata, model)[["rmse", "r_within", "r_beyond_depth"]].round(3))
    print("silhouette", adata.uns["sage_cluster"]["scores"]["silhouette"].max().round(3))

    save(overview(adata, "COL1A1"), arguments.out)


if __name__ == "__main__":
    main()
