"""Write the typical share of each gene that the simulated slide starts from.

    python tools/gene_abundance.py SECTIONS_DIR

The natural logarithm of a gene's share of all counts, averaged over the sections that sagefm-mini was trained
on (each counts once) and rounded to 0.1, one line per gene of the vocabulary.
"""

import argparse
import gzip
from pathlib import Path

import anndata as ad
import numpy as np

import sagefm as sg
from sagefm.models._vocabulary import hest1k


def main() -> None:
    """Average the sections and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", type=Path)
    parser.add_argument("--out", type=Path, default=Path("src/sagefm/datasets/gene_abundance.txt.gz"))
    args = parser.parse_args()
    shares = []
    for name in sg.models.load("sagefm-mini").card["training"]["sections"]:
        adata = ad.read_h5ad(args.sections / f"{name}.h5ad")
        sg.pp.align_genes(adata)
        index = adata.var["sage_gene"].to_numpy()
        total = np.zeros(len(hest1k()))
        np.add.at(total, index[index >= 0], np.asarray(adata.X.sum(axis=0)).ravel()[index >= 0])
        shares.append(total / total.sum())
    share = np.mean(shares, axis=0)
    log_share = np.log(np.maximum(share, share[share > 0].min()))
    text = "\n".join(f"{value:.1f}" for value in log_share)
    args.out.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    main()
