"""The command that describes the histology of a slide."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import sagefm as sg
from sagefm import _keys
from sagefm.cli._files import read_slide, write_slide
from sagefm.cli._options import add_options, add_output, take
from sagefm.cli._result import Result


def add(commands: Any) -> None:
    """Add ``histology``."""
    histology = commands.add_parser(
        "histology", help="describe the H&E image around every spot: obsm['X_histology']; predict expression from it"
    )
    histology.add_argument("input", type=Path, help="slide with coordinates in the image's pixels, .h5ad or .zarr")
    add_output(histology, "slide to write, .h5ad or .zarr")
    histology.add_argument("--image", type=Path, help="TIFF, JPEG or PNG (default: the finest in the slide)")
    histology.add_argument(
        "--model", default="texture", help="texture, spafoundation, or a path (default: %(default)s)"
    )
    histology.add_argument("--size", type=int, default=224, help="pixels of a patch (default: %(default)s)")
    histology.add_argument("--mpp", type=float, help="µm per pixel of the patch (default: the image's own)")
    histology.add_argument("--microns-per-unit", type=float, help="µm per unit of the coordinates, for --mpp")
    add_options(histology, "--library-key", "--device", "--overwrite")
    predict = histology.add_argument_group("expression, predicted from a reference or from other groups of the slide")
    predict.add_argument("--reference", type=Path, help="slides that this command wrote, with counts to learn from")
    predict.add_argument("--group-key", help="column of obs with what is held out together, such as the donor")
    predict.add_argument("--genes", type=int, default=250, help="of the most expressed (default: %(default)s)")
    histology.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> Result:
    text, facts = "", {}
    reference = None
    if arguments.reference is not None:
        reference = read_slide(arguments.reference, None, overwrite=False)
    adata = read_slide(arguments.input, arguments.out, overwrite=arguments.overwrite)
    options = take(arguments, "size", "mpp", "microns_per_unit", "library_key")
    sg.pp.histology_patches(adata, arguments.image, **options)
    sg.tl.histology_embed(adata, arguments.model, device=arguments.device)
    if reference is not None or arguments.group_key is not None:
        options = take(arguments, "library_key", "group_key")
        sg.tl.predict_expression(adata, arguments.genes, reference=reference, **options)
        scores = adata.uns[_keys.HISTOLOGY_EXPRESSION].get("scores")
        if scores is not None:
            quartiles = scores[["r", "r2"]].describe().loc[["25%", "50%", "75%"]].round(3)
            text, facts = quartiles.to_string(), {"scores": quartiles.to_dict()}
    write_slide(adata, arguments.out)
    return Result(text, (arguments.out,), {"spots": adata.n_obs, **facts})
