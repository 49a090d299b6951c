"""Commands that apply a model to a slide: assess, embed, impute, perturb."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sagefm as sg
from sagefm import _keys
from sagefm._io.files import atomic, check_writable
from sagefm._settings import logger, settings
from sagefm._slides import SUFFIXES, is_visium
from sagefm.cli._files import headless, read_slide, write_slide
from sagefm.cli._options import OPTIONS, add_options, add_output, take
from sagefm.cli._result import Result

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def add(commands: Any) -> None:
    """Add the commands."""
    reading = argparse.ArgumentParser(add_help=False)
    reading.add_argument("input", type=Path, help="raw counts: .h5ad, .zarr, or Space Ranger's outs folder or .h5")
    add_options(reading, *OPTIONS)

    assess = commands.add_parser("assess", parents=[reading], help="say whether the model can be trusted on a slide")
    add_output(assess, "card to write, .html or .txt", required=False)
    assess.set_defaults(run=_assess)

    embed = commands.add_parser(
        "embed", parents=[reading], help="embed every spot: obsm['X_sage']; of a slide, or of every slide in a folder"
    )
    add_output(embed, "slide to write, .h5ad or .zarr; a folder for a folder")
    many = embed.add_argument_group("with a folder as input and output")
    many.add_argument("--jobs", type=int, default=1, help="slides at a time (default: %(default)s)")
    many.add_argument("--scheduler", help="address of a dask cluster to do the work, such as tcp://host:8786")
    embed.set_defaults(run=_embed)

    report = commands.add_parser("report", parents=[reading], help="write what is known of a slide into one HTML file")
    add_output(report, "page to write, .html")
    report.add_argument("--genes", nargs="+", help="genes to show (default: 500 with the highest attainable r)")
    report.add_argument("--color", nargs="+", default=[], help="more columns of obs to color by")
    report.add_argument("--interactions", default="paper", help="as of perturb, or none (default: %(default)s)")
    report.add_argument("--title", help="title of the page")
    report.set_defaults(run=_report)

    impute = commands.add_parser("impute", parents=[reading], help="predict genes: layers['sage_imputed']")
    add_output(impute, "slide to write, .h5ad or .zarr")
    impute.add_argument("--genes", nargs="+", help="genes to predict (default: all that were measured)")
    impute.add_argument("--mask", choices=["center", "everywhere"], default="center", help="default: %(default)s")
    impute.add_argument("--intervals", type=float, help="share of values that intervals are to cover, such as 0.9")
    impute.set_defaults(run=_impute)

    perturb = commands.add_parser("perturb", parents=[reading], help="perturb ligands in the neighbors: a table")
    perturb.add_argument(
        "--interactions",
        default="paper",
        help="paper, a resource of LIANA such as consensus, or a CSV file with columns ligand and receptor "
        "(default: %(default)s)",
    )
    add_output(perturb, "table to write, .csv")
    perturb.add_argument("--plot", type=Path, help="figure to write, such as out.png")
    perturb.add_argument("--mask", choices=["all", "pair"], default="all", help="default: %(default)s")
    perturb.add_argument(
        "--n-controls",
        type=int,
        default=20,
        help="controls for each gene of a pair (default: %(default)s)",
    )
    perturb.set_defaults(run=_perturb)


def _assess(arguments: argparse.Namespace) -> Result:
    if arguments.gene_symbols is not None and arguments.min_coverage is None:
        arguments.min_coverage = 0.0  # panels are judged, not refused
    adata = _read(arguments, writes=[".html", ".txt"])
    verbosity, settings.verbosity = settings.verbosity, "WARNING"  # the card is printed, not logged
    try:
        sg.pp.assess(adata, arguments.model, layer=arguments.layer, save=arguments.out)
    finally:
        settings.verbosity = verbosity
    found = adata.uns[_keys.ASSESSMENT]
    if arguments.out is not None:
        logger.info("Wrote %s.", arguments.out)
    facts = _verdicts(adata) | {"checks": found["checks"][["verdict", "text"]].to_dict("index")}
    return Result(found["text"], () if arguments.out is None else (arguments.out,), facts)


def _embed(arguments: argparse.Namespace) -> Result:
    if arguments.input.is_dir() and arguments.input.suffix not in SUFFIXES and not is_visium(arguments.input):
        return _embed_folder(arguments)
    if arguments.jobs != 1 or arguments.scheduler is not None:
        raise ValueError("--jobs and --scheduler go with a folder of slides.")
    adata = _read(arguments)
    sg.tl.sage_embed(adata, arguments.model, **take(arguments, "layer", "device", "batch_size"))
    write_slide(adata, arguments.out)
    spots, dimensions = adata.obsm[_keys.EMBEDDING].shape
    return Result("", (arguments.out,), {"spots": spots, "dimensions": dimensions})


def _embed_folder(arguments: argparse.Namespace) -> Result:
    arguments.interrupted = "slides that are done are kept, and the same command goes on from there."
    client = None
    if arguments.scheduler is not None:
        from distributed import Client

        client = Client(arguments.scheduler)
    options = take(arguments, "layer", "library_key", "gene_symbols", "min_coverage", "device", "batch_size")
    try:
        table = sg.tl.embed_sections(
            arguments.input,
            arguments.out,
            arguments.model,
            n_jobs=arguments.jobs,
            client=client,
            overwrite=arguments.overwrite,
            **options,
        )
    finally:
        if client is not None:
            client.close()
    counts = table["status"].value_counts()
    if n_failed := counts.get("failed", 0):
        if not arguments.json:
            print(_counted(counts))
        raise RuntimeError(f"{n_failed} of {len(table)} slides failed; see {arguments.out / 'sections.csv'}.")
    return Result(_counted(counts), (arguments.out,), {"status": counts.to_dict()})


def _impute(arguments: argparse.Namespace) -> Result:
    adata = _read(arguments)
    options = take(arguments, "mask", "intervals", "layer", "device", "batch_size")
    sg.tl.impute(adata, arguments.genes, arguments.model, **options)
    write_slide(adata, arguments.out)
    table = adata.uns[_keys.IMPUTED].get("reliability")
    counts = {} if table is None else {"genes": len(table), "reliable": int(table["reliable"].sum())}
    return Result("", (arguments.out,), {"spots": adata.n_obs, **counts})


def _report(arguments: argparse.Namespace) -> Result:
    interactions = None if arguments.interactions == "none" else _interactions(arguments.interactions)
    adata = _read(arguments, writes=[".html"])
    options = take(arguments, "genes", "color", "title", "layer", "library_key", "device")
    sg.report(adata, arguments.out, arguments.model, interactions=interactions, **options)
    return Result(f"report: {arguments.out}", (arguments.out,), {"spots": adata.n_obs})


def _interactions(name: str) -> str | pd.DataFrame:
    """Table of a CSV file, or the name of a resource."""
    import pandas as pd

    return pd.read_csv(name) if name.endswith(".csv") else name


def _perturb(arguments: argparse.Namespace) -> Result:
    interactions = _interactions(arguments.interactions)
    if arguments.plot is not None:
        check_writable(arguments.plot)
    adata = _read(arguments, writes=[".csv"])
    options = take(arguments, "mask", "n_controls", "library_key", "layer", "device", "batch_size")
    sg.tl.perturb_lr(adata, interactions, arguments.model, **options)
    results = adata.uns[_keys.PERTURB_LR]["results"]
    with atomic(arguments.out) as partial:
        results.to_csv(partial, index=False)
    logger.info("Wrote %s.", arguments.out)
    if arguments.plot is not None:
        with headless():
            sg.pl.perturbation_lollipop(adata, show=False, save=arguments.plot)
        logger.info("Wrote %s.", arguments.plot)
    counts = results["verdict"].value_counts()
    written = [path for path in (arguments.out, arguments.plot) if path is not None]
    responding = results.index[results["verdict"] == "responds"].tolist()
    return Result(_counted(counts), tuple(written), {"verdicts": counts.to_dict(), "respond": responding})


def _verdicts(adata: AnnData) -> dict[str, Any]:
    """Verdict of the trust card, on all slides and on each."""
    found = adata.uns[_keys.ASSESSMENT]
    return {"verdict": found["verdict"], "slides": found["slides"]["verdict"].to_dict()}


def _counted(counts: pd.Series) -> str:
    return "\n".join(f"{number:6d}  {value}" for value, number in counts.items())


def _read(arguments: argparse.Namespace, writes: Sequence[str] = SUFFIXES) -> AnnData:
    """Read the slide and give it the graph and genes that it lacks, after checking that the output can be written."""
    adata = read_slide(arguments.input, arguments.out, overwrite=arguments.overwrite, writes=writes)
    if arguments.layer is not None and arguments.layer not in adata.layers:
        raise KeyError(f"layer {arguments.layer!r} not in the slide; it has {sorted(adata.layers)}.")
    if arguments.min_coverage is not None or arguments.gene_symbols is not None:
        coverage = {} if arguments.min_coverage is None else {"min_coverage": arguments.min_coverage}
        sg.pp.align_genes(adata, arguments.model, gene_symbols=arguments.gene_symbols, **coverage)
    if arguments.library_key is not None or _keys.connectivities(_keys.GRAPH) not in adata.obsp:
        sg.pp.neighborhood_graph(adata, library_key=arguments.library_key)
    else:
        logger.info("The slide has its graph, obsp['%s'], which is used.", _keys.connectivities(_keys.GRAPH))
    return adata
