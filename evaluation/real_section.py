"""The figure of a real section that the model hasn't seen: CRC_16 (Galeano Niño et al. 2022).

python evaluation/real_section.py SECTIONS [--models FOLDER] [--out docs/_static/real_section.png]

Trains mini's recipe on the other sections (3 minutes on 2 CPU cores), or takes CRC_16.safetensors from FOLDER.
"""

import argparse
import tempfile
from pathlib import Path

import anndata as ad
import matplotlib as mpl
import numpy as np
from figures import save
from left_out import model_without, section_files
from matplotlib import pyplot as plt
from PIL import Image
from scanpy.get import obs_df

import sagefm as sg

GENES = ("EPCAM", "COL1A1")


def main() -> None:
    """Run the quickstart on the section and draw what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", type=Path)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/_static/real_section.png"))
    arguments = parser.parse_args()
    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    files = section_files(arguments.sections)
    with tempfile.TemporaryDirectory() as folder:
        model = model_without("CRC_16", files, arguments.models or Path(folder))
    adata = ad.read_h5ad(files["CRC_16"])
    sg.pp.neighborhood_graph(adata)
    sg.tl.sage_embed(adata, model)
    sg.tl.cluster(adata)
    sg.tl.cluster_markers(adata)
    sg.tl.impute(adata, None, model)
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

    mpl.use("agg")
    figure, axes = plt.subplots(2, 3, figsize=(10, 6.4), dpi=110, layout="constrained")
    x, y = adata.obsm["spatial"].T
    clusters = adata.obs["sage_cluster"]
    for i, cluster in enumerate(clusters.cat.categories):
        inside = (clusters == cluster).to_numpy()
        axes[0, 0].scatter(x[inside], y[inside], s=5, color=f"C{i}", label=cluster, linewidths=0)
    axes[0, 0].legend(frameon=False, markerscale=3, loc="center left", bbox_to_anchor=(1, 0.5))
    axes[0, 0].set_title("clusters of the embedding")
    shown = [(axes[0, 1], GENES[0], None), (axes[0, 2], GENES[0], "sage_imputed")]
    shown += [(axes[1, 1], GENES[1], None), (axes[1, 2], GENES[1], "sage_imputed")]
    for ax, gene, layer in shown:
        values = obs_df(adata, [gene], layer=layer)[gene]
        drawn = ax.scatter(x, y, c=values if layer else np.log1p(values), s=5, linewidths=0)
        figure.colorbar(drawn, ax=ax, shrink=0.7, label="log1p counts")
        ax.set_title(f"{gene}, {'predicted' if layer else 'measured'}")
    for ax in (axes[0, 0], *(ax for ax, _, _ in shown)):
        ax.set_aspect("equal")
        ax.invert_yaxis()
        ax.axis("off")
    sg.pl.reliability(adata, n_labels=0, ax=axes[1, 0])
    figure.canvas.draw()
    save(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB"), arguments.out)


if __name__ == "__main__":
    main()
