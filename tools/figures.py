"""Figures of README and docs: what the demo shows, and diagrams of the model.

python tools/figures.py DEMO_DIR OUT_DIR
"""

import sys
from pathlib import Path

import anndata as ad
import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch_geometric.nn import GCNConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import to_dense_adj

import sagefm as sg

mpl.use("agg")
plt.rcParams |= {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
SINGLE = ("perturbed.png", "reliability.png")
WIDTH = 1000
SPOT, NEIGHBOR, OTHER = "#c8401f", "#e9a23b", "#d4d7dc"


def main(demo: Path, out: Path) -> None:
    """Write the demo's figures that stand alone and the diagrams, in 256 colors."""
    for name in SINGLE:
        image = Image.open(demo / name).convert("RGB")
        save(image.resize((WIDTH, round(image.height * WIDTH / image.width))), out / name)
    save(overview(ad.read_h5ad(demo / "demo.h5ad"), "CD74"), out / "demo.png")
    save(to_image(collapse()), out / "collapse.png")
    save(to_image(neighborhoods()), out / "neighborhoods.png")


def save(image: Image.Image, path: Path) -> None:
    """Write an image in 256 colors, without dither."""
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def overview(adata: ad.AnnData, gene: str, n_pairs: int = 12) -> Image.Image:
    """What comes out of a slide, as the plots show it: clusters, a gene, reliability, ligands and receptors."""
    rows = [
        [
            sg.pl.cluster(adata, title="clusters of the embedding", figsize=(4.2, 3.6), return_fig=True),
            sg.pl.imputation(adata, gene, figsize=(11, 3.6), return_fig=True),
        ],
        [
            sg.pl.reliability(adata, genes=gene, title="how well each gene is predicted", return_fig=True),
            sg.pl.perturbation_lollipop(
                adata,
                n_pairs=n_pairs,
                figsize=(7, 4.8),
                title="ligands of the neighbors, receptors of the spot",
                return_fig=True,
            ),
        ],
    ]
    lines = [beside([to_image(figure) for figure in row]) for row in rows]
    width = max(line.width for line in lines)
    lines = [line.resize((width, round(line.height * width / line.width)), Image.Resampling.LANCZOS) for line in lines]
    page = Image.new("RGB", (width, sum(line.height for line in lines)), "white")
    for line, top in zip(lines, np.cumsum([0, *(line.height for line in lines)]), strict=False):
        page.paste(line, (0, top))
    return page


def beside(images: list[Image.Image]) -> Image.Image:
    """Put images of one height beside each other."""
    height = max(image.height for image in images)
    line = Image.new("RGB", (sum(image.width for image in images), height), "white")
    for image, left in zip(images, np.cumsum([0, *(image.width for image in images)]), strict=False):
        line.paste(image, (left, (height - image.height) // 2))
    return line


def to_image(figure: Figure) -> Image.Image:
    """Draw a figure."""
    figure.set_dpi(110)
    figure.canvas.draw()
    drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    plt.close(figure)
    return drawn


def collapse(n_genes: int = 12) -> Figure:
    """One neighborhood through the published architecture's first layer: 15 nodes become the same."""
    adata = sg.datasets.simulated_visium(9, 9, n_genes=12_000, rng=1)
    sg.pp.neighborhood_graph(adata)
    center = 4 * 9 + 4
    nodes = np.r_[center, adata.obsp["sage_connectivities"][center].indices]
    counts = np.log1p(adata.X[nodes].toarray())
    order = np.argsort(-counts.var(axis=0))[:n_genes]
    torch.manual_seed(0)
    convolution = GCNConv(counts.shape[1], n_genes)
    pairs = torch.tensor([(i, j) for i in range(15) for j in range(15) if i != j]).T
    edges, weights = gcn_norm(pairs, num_nodes=15)
    propagation = to_dense_adj(edges, edge_attr=weights)[0].numpy()
    with torch.no_grad():
        states = convolution(torch.tensor(counts), pairs).numpy()
    assert np.allclose(propagation, 1 / 15)
    assert np.allclose(states, states[0], atol=1e-5)

    figure, axes = plt.subplots(1, 4, figsize=(10.5, 3), dpi=140, layout="constrained", width_ratios=(1.2, 1, 1, 1))
    stencil(axes[0], adata.obsm["spatial"], nodes)
    axes[0].set_title("a spot and its 14 nearest,\njoined each with each")
    for ax, matrix, title, label, cmap in (
        (axes[1], counts[:, order], "log1p counts\nof the 15 nodes", "genes", "viridis"),
        (axes[2], propagation, "propagation matrix:\nevery entry is 1/15", "nodes", "Greys"),
        (axes[3], states, "after the first convolution\nall 15 nodes are equal", "hidden units", "viridis"),
    ):
        ax.imshow(matrix, aspect="auto", cmap=cmap, **({"vmin": 0, "vmax": 0.2} if cmap == "Greys" else {}))
        ax.set(title=title, xlabel=label, ylabel="nodes", xticks=[], yticks=[0], yticklabels=["spot"])
    return figure


def stencil(ax: Axes, spatial: np.ndarray, nodes: np.ndarray, edges: bool = True) -> None:
    """Draw a spot, its neighbors and the others."""
    if edges:
        for i, first in enumerate(nodes):
            for second in nodes[:i]:
                ax.plot(*spatial[[first, second]].T, color=NEIGHBOR, linewidth=0.35, zorder=1)
    colors = np.full(len(spatial), OTHER, dtype=object)
    colors[nodes[1:]], colors[nodes[0]] = NEIGHBOR, SPOT
    ax.scatter(*spatial.T, c=colors, s=42, zorder=3, linewidths=0)
    ax.set_aspect("equal")
    ax.invert_yaxis()
    ax.axis("off")


def neighborhoods() -> Figure:
    """Which spots are neighbors: on Visium's lattice, at its edge, on a square lattice, between two slides."""
    adata = sg.datasets.simulated_visium(9, 9, n_genes=200)
    square = adata.copy()
    rows, cols = np.divmod(np.arange(81), 9)
    square.obsm["spatial"] = 100.0 * np.column_stack([cols, rows])
    square.obs = square.obs.drop(columns=["array_row", "array_col"])
    pair = adata.copy()
    pair.obs["slide"] = np.where(pair.obs["array_col"] < 8, "left", "right")
    shown = (
        ("inside the tissue, Visium:\n2 + 2, 4 + 4 and 1 + 1", adata, 40, {}),
        ("at the corner:\nstill the 14 nearest", adata, 0, {}),
        ("a square lattice: ties are\nbroken alike everywhere", square, 40, {}),
        ("two slides, library_key:\nneighbors on the same one", pair, 39, {"library_key": "slide"}),
    )
    figure, axes = plt.subplots(2, 2, figsize=(7.5, 6.2), dpi=130, layout="constrained")
    for ax, (title, slide, spot, options) in zip(axes.flat, shown, strict=True):
        sg.pp.neighborhood_graph(slide, **options)
        nodes = np.r_[spot, slide.obsp["sage_connectivities"][spot].indices]
        spatial = slide.obsm["spatial"].astype(float)
        if options:
            spatial[slide.obs["slide"] == "right", 0] += 120
        stencil(ax, spatial, nodes, edges=False)
        ax.set(title=title, anchor="N")
    return figure


if __name__ == "__main__":
    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    main(*map(Path, sys.argv[1:]))
