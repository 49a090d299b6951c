"""How often annotated spots are right on donors without a label in the reference, by whether they are sure.

    python evaluation/annotation.py SECTIONS_DIR [--out docs/evaluation]

Pathologists' labels of her2st (6 donors) and of synovium (3 donors), embedded by sagefm-mini, which was trained on
their counts but on no label. Each donor is predicted from the others. Writes
``annotation.csv``. Three minutes on 2 CPU cores.
"""

import argparse
from pathlib import Path

import anndata as ad
import pandas as pd

import sagefm as sg

COLLECTIONS = {
    "her2st": ["her2st_A1", "her2st_C1", "her2st_D1", "her2st_E1", "her2st_F1", "her2st_G2"],
    "synovium": [f"synovium_RA{donor}_s1" for donor in (1, 3, 4)],
}
LEFT_OUT = ["undetermined", "Unknown", "unlabelled"]
COLUMNS = ["n_spots", "accuracy", "majority", "share_sure", "accuracy_sure", "accuracy_unsure"]


def main() -> None:
    """Annotate each collection with every donor held out, by both classifiers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/evaluation"))
    arguments = parser.parse_args()
    sg.settings.verbosity, sg.settings.progress_bars = "error", False
    parts = []
    for name, files in COLLECTIONS.items():
        adata = ad.concat({file: read(arguments.sections / f"{file}.h5ad") for file in files}, index_unique="-")
        sg.pp.neighborhood_graph(adata, library_key="sample")
        sg.tl.sage_embed(adata, "sagefm-mini")
        for classifier in ("forest", "mlp"):
            sg.tl.annotate(adata, "pathologist", group_key="donor", classifier=classifier)
            scores = adata.uns["sage_annotation"]["scores"][COLUMNS]
            parts.append(scores.reset_index().assign(collection=name, classifier=classifier))
    table = pd.concat(parts).set_index(["collection", "classifier", "group"]).round(3)
    print(table.to_string())
    table.to_csv(arguments.out / "annotation.csv")


def read(file: Path) -> ad.AnnData:
    """A section; spots between two classes, or of none, have no label."""
    adata = ad.read_h5ad(file)
    labels = adata.obs["pathologist"].astype(object).str.replace("/", " or ")
    known = labels.notna() & ~labels.astype(str).str.contains(";") & ~labels.isin(LEFT_OUT)
    adata.obs["pathologist"] = labels.where(known, None)
    return adata


if __name__ == "__main__":
    main()
