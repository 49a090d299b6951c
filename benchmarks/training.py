"""Speed of a training step at published size, against the literal PyG step.

    python benchmarks/training.py [--section FILE.h5ad] [--runs 5] [--batch-size 64]

Each run times the two in turn on the same spots, from counts to updated weights, both with the same fused Adam:
the literal step makes a complete graph of 15 nodes a spot, masks the center, runs the network on all nodes and
steps; ours runs the library's stream, objective and optimizer. Medians of the times and of the ratios are in the line
that is printed.
"""

import argparse
import sys
import tempfile
from itertools import chain, repeat
from pathlib import Path

import anndata as ad
import numpy as np
import torch
from timing import in_turn, ratio, report
from torch_geometric.loader import DataLoader

import sagefm as sg
from sagefm.train._module import MaskedCenter, masked_squared_error
from sagefm.train._stream import Stream

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import literal

MASK_FRACTION = 0.3


def adam(network: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=5e-5, weight_decay=1e-4, fused=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--section", type=Path, help="section to train on; by default a simulated slide")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()

    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    adata = ad.read_h5ad(args.section) if args.section else sg.datasets.simulated_visium(40, 40)
    if "donor" not in adata.obs:
        adata.obs["donor"] = "donor"
    torch.manual_seed(0)
    network = sg.models.GCN(14558)
    recipe = sg.train.PRESETS["paper"]
    with tempfile.TemporaryDirectory() as folder:
        corpus = sg.train.prepare_corpus(adata, Path(folder) / "corpus.zarr", split={})
        module, optimizer = MaskedCenter(network, corpus, recipe), adam(network)
        stream = Stream(corpus, "train", batch_size=args.batch_size, mask_fraction=MASK_FRACTION)

        def ours(batches: object) -> None:
            _, spots = next(batches)
            loss = masked_squared_error(module(spots)[0], spots.center, spots.mask) / spots.mask.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        dense = literal.dense_log1p(adata, corpus.vocabulary.symbols)
        sg.pp.neighborhood_graph(adata)
        neighborhoods = literal.neighborhoods_of(adata.obsp["sage_connectivities"])
        order = np.random.default_rng(0).permutation(adata.n_obs)

        def published(start: int) -> None:
            chosen = [neighborhoods[i] for i in order[start : start + args.batch_size]]
            graphs = list(literal.ego_graphs(dense, chosen))
            for graph in graphs:
                graph.truth = graph.x.clone()
                graph.mask = torch.zeros_like(graph.x, dtype=torch.bool)
                graph.mask[0] = torch.rand(graph.x.shape[1]) < MASK_FRACTION
                graph.x[0, graph.mask[0]] = 0
            (batch,) = DataLoader(graphs, batch_size=args.batch_size)
            loss = (((network(batch.x, batch.edge_index) - batch.truth) ** 2) * batch.mask).sum() / batch.mask.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        batches = chain.from_iterable(repeat(stream))
        ours(batches), published(0)  # memory is touched, the window is read
        chunks = iter(range(args.batch_size, (args.runs + 1) * args.batch_size, args.batch_size))

        def four() -> None:
            for _ in range(4):
                ours(batches)

        jobs = {
            "ours": (four, 4 * args.batch_size),
            "literal PyG": (lambda: published(next(chunks)), args.batch_size),
        }
        times = in_turn(jobs, args.runs)
    report(
        "training step",
        section=args.section.stem if args.section else "simulated",
        batch_size=args.batch_size,
        milliseconds_a_spot={name: float(np.median(values)) * 1e3 for name, values in times.items()},
        faster_than_literal=ratio(times, "literal PyG", "ours"),
    )


if __name__ == "__main__":
    main()
