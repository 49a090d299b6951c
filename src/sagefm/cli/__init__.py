"""``sagefm demo | assess | embed | impute | perturb | histology | evaluate | models | prepare | pretrain``.

Exit codes: 0 done, 1 refused or failed with a message, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import sagefm as sg
from sagefm import _keys
from sagefm._io.files import atomic
from sagefm._settings import logger, settings
from sagefm.cli import _histology, _training
from sagefm.cli._files import SLIDES, headless, read_slide, write_slide

if TYPE_CHECKING:
    from anndata import AnnData

EXPECTED = (ValueError, KeyError, TypeError, OSError, RuntimeError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.quiet:
        settings.verbosity, settings.progress_bars = "ERROR", False
    try:
        arguments.run(arguments)
    except EXPECTED as error:
        # KeyError quotes its message.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        logger.error("error: %s", message)
        return 1
    except KeyboardInterrupt:
        logger.error("interrupted; %s", arguments.interrupted)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sagefm", description="SAGE-FM on spatial transcriptomics slides.")
    parser.add_argument("--version", action="version", version=f"sagefm {sg.__version__}")
    parser.set_defaults(interrupted="nothing was written to the output.")
    parser.add_argument("--quiet", action="store_true", help="errors only, no progress bars")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="run the main job on a simulated slide, offline")
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("sagefm-demo"),
        help="folder to write, over an earlier demo (default: %(default)s)",
    )
    demo.set_defaults(run=_demo)

    reading = argparse.ArgumentParser(add_help=False)
    reading.add_argument("input", type=Path, help="slide with raw counts, .h5ad or .zarr")
    reading.add_argument("--model", default="sage-fm-hest1k", help="name or path (default: %(default)s)")
    reading.add_argument("--layer", help="layer with the raw counts (default: X)")
    reading.add_argument("--library-key", help="column of obs that names the slide of each spot")
    reading.add_argument("--gene-symbols", help="column of var with the genes' symbols (default: var_names)")
    reading.add_argument("--min-coverage", type=float, help="share of the model's genes to ask for (default: 0.3)")
    reading.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (default: %(default)s)")
    reading.add_argument("--batch-size", type=int, help="spots at a time")
    reading.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    slide = argparse.ArgumentParser(add_help=False, parents=[reading])
    slide.add_argument(
        "-o", "--out", type=Path, required=True, help="slide to write, .h5ad or .zarr; a folder for a folder"
    )

    assess = commands.add_parser("assess", parents=[reading], help="say whether the model can be trusted on a slide")
    assess.add_argument("-o", "--out", type=Path, help="card to write, .html or .txt")
    assess.set_defaults(run=_assess)

    embed = commands.add_parser(
        "embed", parents=[slide], help="embed every spot: obsm['X_sage']; of a slide, or of every slide in a folder"
    )
    many = embed.add_argument_group("with a folder as input and output")
    many.add_argument("--jobs", type=int, default=1, help="slides at a time (default: %(default)s)")
    many.add_argument("--scheduler", help="address of a dask cluster to do the work, such as tcp://host:8786")
    embed.set_defaults(run=_embed)

    impute = commands.add_parser("impute", parents=[slide], help="predict genes: layers['sage_imputed']")
    impute.add_argument("--genes", nargs="+", help="genes to predict (default: all that were measured)")
    impute.add_argument("--mask", choices=["center", "everywhere"], default="center", help="default: %(default)s")
    impute.add_argument("--intervals", type=float, help="share of values that intervals are to cover, such as 0.9")
    impute.set_defaults(run=_impute)

    perturb = commands.add_parser("perturb", parents=[reading], help="perturb ligands in the neighbours: a table")
    perturb.add_argument(
        "--interactions",
        default="paper",
        help="paper, a resource of LIANA such as consensus, or a CSV file with columns ligand and receptor "
        "(default: %(default)s)",
    )
    perturb.add_argument("-o", "--out", type=Path, required=True, help="table to write, .csv")
    perturb.add_argument("--plot", type=Path, help="figure to write, such as out.png")
    perturb.add_argument("--mask", choices=["all", "pair"], default="all", help="default: %(default)s")
    perturb.add_argument("--n-controls", type=int, default=20, help="controls a receptor (default: %(default)s)")
    perturb.set_defaults(run=_perturb)

    evaluate = commands.add_parser("evaluate", help="compare embeddings on labelled sections: tables and a report")
    evaluate.add_argument("config", type=Path, help="settings, .toml, or a folder of sections for the defaults")
    evaluate.add_argument("-o", "--out", type=Path, required=True, help="folder to write; a run there is resumed")
    evaluate.add_argument("--model", help="with a folder: name or path (default: sage-fm-hest1k)")
    evaluate.add_argument("--overwrite", action="store_true", help="start again over a run with other settings")
    evaluate.set_defaults(run=_evaluate, interrupted="what is done is kept, and the same command goes on from there.")

    listing = commands.add_parser("models", help="list the models")
    listing.set_defaults(run=_models)

    _histology.add(commands)
    _training.add(commands)
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    from sagefm.cli._demo import run

    run(arguments.out)


def _assess(arguments: argparse.Namespace) -> None:
    if arguments.gene_symbols is not None and arguments.min_coverage is None:
        arguments.min_coverage = 0.0  # panels are judged, not refused
    adata = _read(arguments, writes=[".html", ".txt"])
    verbosity, settings.verbosity = settings.verbosity, "WARNING"  # the card is printed, not logged
    try:
        sg.pp.assess(adata, arguments.model, layer=arguments.layer, save=arguments.out)
    finally:
        settings.verbosity = verbosity
    print(adata.uns[_keys.ASSESSMENT]["text"])
    if arguments.out is not None:
        logger.info("Wrote %s.", arguments.out)


def _embed(arguments: argparse.Namespace) -> None:
    if arguments.input.is_dir() and arguments.input.suffix not in SLIDES:
        _embed_folder(arguments)
        return
    if arguments.jobs != 1 or arguments.scheduler is not None:
        raise ValueError("--jobs and --scheduler go with a folder of slides.")
    adata = _read(arguments)
    sg.tl.sage_embed(
        adata,
        arguments.model,
        layer=arguments.layer,
        device=arguments.device,
        batch_size=arguments.batch_size,
    )
    write_slide(adata, arguments.out)


def _embed_folder(arguments: argparse.Namespace) -> None:
    arguments.interrupted = "slides that are done are kept, and the same command goes on from there."
    client = None
    if arguments.scheduler is not None:
        from distributed import Client

        client = Client(arguments.scheduler)
    try:
        table = sg.tl.embed_sections(
            arguments.input,
            arguments.out,
            arguments.model,
            n_jobs=arguments.jobs,
            client=client,
            layer=arguments.layer,
            library_key=arguments.library_key,
            gene_symbols=arguments.gene_symbols,
            min_coverage=arguments.min_coverage,
            device=arguments.device,
            batch_size=arguments.batch_size,
            overwrite=arguments.overwrite,
        )
    finally:
        if client is not None:
            client.close()
    counts = table["status"].value_counts()
    print("\n".join(f"{number:6d}  {status}" for status, number in counts.items()))
    if "failed" in counts:
        raise RuntimeError(f"{counts['failed']} of {len(table)} slides failed; see {arguments.out / 'sections.csv'}.")


def _impute(arguments: argparse.Namespace) -> None:
    adata = _read(arguments)
    sg.tl.impute(
        adata,
        arguments.genes,
        arguments.model,
        mask=arguments.mask,
        intervals=arguments.intervals,
        layer=arguments.layer,
        device=arguments.device,
        batch_size=arguments.batch_size,
    )
    write_slide(adata, arguments.out)


def _perturb(arguments: argparse.Namespace) -> None:
    import pandas as pd

    interactions = arguments.interactions
    if interactions.endswith(".csv"):
        interactions = pd.read_csv(interactions)
    if arguments.plot is not None and not arguments.plot.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {arguments.plot.absolute().parent} to write into.")
    adata = _read(arguments, writes=[".csv"])
    sg.tl.perturb_lr(
        adata,
        interactions,
        arguments.model,
        mask=arguments.mask,
        n_controls=arguments.n_controls,
        library_key=arguments.library_key,
        layer=arguments.layer,
        device=arguments.device,
        batch_size=arguments.batch_size,
    )
    results = adata.uns[_keys.PERTURB_LR]["results"]
    with atomic(arguments.out) as partial:
        results.to_csv(partial, index=False)
    logger.info("Wrote %s.", arguments.out)
    if arguments.plot is not None:
        with headless():
            sg.pl.perturbation_lollipop(adata, show=False, save=arguments.plot)
        logger.info("Wrote %s.", arguments.plot)
    counts = results["verdict"].value_counts()
    print("\n".join(f"{number:6d}  {verdict}" for verdict, number in counts.items()))


def _evaluate(arguments: argparse.Namespace) -> None:
    config: Path | dict[str, str] = arguments.config
    if arguments.model is not None:
        if not arguments.config.is_dir():
            raise ValueError("--model goes with a folder of sections; a configuration names its models itself.")
        config = {"sections": str(arguments.config), "model": arguments.model}
    with headless():
        sg.benchmark.run_protocol(config, arguments.out, overwrite=arguments.overwrite)
    print(f"report: {arguments.out / 'report.html'}")


def _models(arguments: argparse.Namespace) -> None:
    for name, entry in sg.models.available().iterrows():
        where = "ready" if entry["local"] else f"downloaded on first use, {entry['size_mb']} MB"
        print(f"{name:16s} {entry['description']}\n{'':16s} licence: {entry['licence']}; {where}")


def _read(arguments: argparse.Namespace, writes: Sequence[str] = SLIDES) -> AnnData:
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
