"""Commands that make a corpus and train on it."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import sagefm as sg
from sagefm._slides import find_sections
from sagefm.cli._options import add_options, add_output, take
from sagefm.cli._result import Result


def add(commands: Any) -> None:
    """Add ``prepare`` and ``pretrain``."""
    _add_prepare(commands)
    _add_pretrain(commands)


def _add_prepare(commands: Any) -> None:
    prepare = commands.add_parser("prepare", help="make a training corpus of sections")
    prepare.add_argument("sections", type=Path, help="folder with sections, .h5ad or .zarr")
    add_output(prepare, "corpus to write, .zarr")
    prepare.add_argument("--exclude", nargs="+", default=[], metavar="NAME", help="sections to leave out")
    prepare.add_argument("--split-by", default="donor", help="column of obs that is never split (default: %(default)s)")
    prepare.add_argument("--split", help="random (default), paper, or a CSV file with columns group and split")
    prepare.add_argument("--validate", nargs="+", default=[], metavar="GROUP", help="groups to validate on")
    prepare.add_argument("--test", nargs="+", default=[], metavar="GROUP", help="groups to keep for tests")
    prepare.add_argument("--seed", type=int, default=0, help="of a random split (default: %(default)s)")
    add_options(prepare, "--layer", "--library-key", "--gene-symbols", "--overwrite")
    prepare.add_argument("--min-coverage", type=float, default=0.3, help="share of the genes to ask for")
    prepare.add_argument("--table-key", default="table", help="table of SpatialData objects (default: %(default)s)")
    prepare.set_defaults(run=_prepare)


def _add_pretrain(commands: Any) -> None:
    pretrain = commands.add_parser("pretrain", help="train a model on a corpus")
    pretrain.add_argument("corpus", type=Path, help="corpus that prepare wrote")
    add_output(pretrain, "model to write, .safetensors")
    pretrain.add_argument("--preset", default="mini", choices=["mini", "nano", "paper"], help="default: %(default)s")
    pretrain.add_argument("--init", help="model to start from, name or path")
    pretrain.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    pretrain.add_argument("--run-dir", type=Path, help="for checkpoints and logs (default: beside the model)")
    pretrain.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    changes = pretrain.add_argument_group("changes of the preset")
    changes.add_argument("--architecture", choices=["gcn", "sage"])
    changes.add_argument("--hidden", type=int, nargs="+", metavar="WIDTH")
    for name in ("dropout", "mask-fraction", "learning-rate", "weight-decay", "niche-weight"):
        changes.add_argument(f"--{name}", type=float)
    for name in ("batch-size", "max-epochs", "patience"):
        changes.add_argument(f"--{name}", type=int)
    machine = pretrain.add_argument_group("machine")
    machine.add_argument("--accelerator", default="auto", help="auto, gpu or cpu (default: %(default)s)")
    machine.add_argument("--devices", default="1", help="how many, or auto (default: %(default)s)")
    machine.add_argument("--num-nodes", type=int, default=1, help="default: %(default)s")
    machine.add_argument("--strategy", default="auto", help="of Lightning, such as ddp (default: %(default)s)")
    machine.add_argument("--precision", default="32-true", help="such as bf16-mixed (default: %(default)s)")
    machine.add_argument("--accumulate", type=int, default=1, help="batches a step (default: %(default)s)")
    machine.add_argument("--shuffle-spots", type=int, help="spots in memory at a time, 58 kB each")
    machine.add_argument("--checkpoint-steps", type=int, help="steps between checkpoints")
    pretrain.set_defaults(run=_pretrain, interrupted="--resume goes on from the last checkpoint.")


def _prepare(arguments: argparse.Namespace) -> Result:
    sections = find_sections(arguments.sections)
    if unknown := sorted(set(arguments.exclude) - set(sections)):
        raise ValueError(f"--exclude names {unknown}, which are not in {arguments.sections}.")
    split = arguments.split or "random"
    if named := arguments.validate + arguments.test:
        if arguments.split is not None or len(set(named)) < len(named):
            raise ValueError("--validate and --test name each group once, and go without --split.")
        split = dict.fromkeys(arguments.validate, "validate") | dict.fromkeys(arguments.test, "test")
    corpus = sg.train.prepare_corpus(
        {name: file for name, file in sections.items() if name not in arguments.exclude},
        arguments.out,
        split=split,
        rng=arguments.seed,
        **take(arguments, "split_by", "layer", "library_key", "gene_symbols", "min_coverage"),
        **take(arguments, "table_key", "overwrite"),
    )
    table = corpus.sections[["split", "group", "n_spots", "coverage"]].round(3)
    return Result(
        table.to_string(), (arguments.out,), {"sections": table.rename_axis("name").reset_index().to_dict("records")}
    )


def _pretrain(arguments: argparse.Namespace) -> Result:
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    changes = {field.name: given[field.name] for field in fields(sg.train.Recipe) if field.name in given}
    if "hidden" in changes:
        changes["hidden"] = tuple(changes["hidden"])
    optional = {name: given[name] for name in ("shuffle_spots", "checkpoint_steps") if name in given}
    model = sg.train.pretrain(
        arguments.corpus,
        replace(sg.train.PRESETS[arguments.preset], **changes),
        devices=arguments.devices if arguments.devices == "auto" else int(arguments.devices),
        rng=arguments.seed,
        **take(arguments, "out", "init", "resume", "run_dir"),
        **take(arguments, "accelerator", "num_nodes", "strategy", "precision", "accumulate"),
        **optional,
    )
    metrics = model.card.get("validation", {}).get("metrics", {})
    return Result("", (arguments.out,), {"model": model.name, "validation": metrics})
