"""Models of sagefm-mini's recipe, each trained without one donor, for the scripts that measure on unseen donors."""

import tempfile
from pathlib import Path

import anndata as ad
from ablation import EXCLUDED, LEFT_OUT

import sagefm as sg

DONORS = (
    LEFT_OUT,
    "her2st_A",
    "her2st_C",
    "her2st_D",
    "her2st_E",
    "her2st_F",
    "CRC_16",
    "janesick",
    "thrane1",
    "MSTI1",
)
# Donors that sagefm-mini never saw: synovium, breast and lung.
UNSEEN = ("synovium_RA1", "synovium_RA3", "synovium_RA4", "synovium_RA6", "stahl_BC", "lung_V10T31-015")


def section_files(folder: Path) -> dict[str, Path]:
    """The sections that sagefm-mini was trained on, as its card lists them."""
    names = sg.models.load("sagefm-mini").card["training"]["sections"]
    return {name: folder / f"{name}.h5ad" for name in names}


def donor_sections(donor: str, folder: Path) -> dict[str, ad.AnnData]:
    """Sections of a donor, with their graphs."""
    sections = {}
    for file in sorted(folder.glob("*.h5ad")):
        adata = ad.read_h5ad(file, backed="r")
        if file.stem not in EXCLUDED and (adata.obs["donor"] == donor).all():
            sections[file.stem] = adata.to_memory()
            sg.pp.neighborhood_graph(sections[file.stem])
    return sections


def model_without(donor: str, files: dict[str, Path], folder: Path) -> sg.models.Model:
    """Train it (3 minutes on 2 CPU cores), or load what lies in the folder."""
    out = folder / f"{donor}.safetensors"
    if not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            corpus = sg.train.prepare_corpus(files, Path(scratch) / "corpus.zarr", split={donor: "validate"})
            sg.train.pretrain(
                corpus,
                sg.train.PRESETS["mini"],
                out=out,
                name="mini",
                run_dir=Path(scratch) / "run",
                accelerator="cpu",
            )
    return sg.models.load(out)
