"""Options that several commands take, and their values as arguments of functions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

OPTIONS: dict[str, dict[str, Any]] = {
    "--model": {"default": "sage-fm-hest1k", "help": "name or path (default: %(default)s)"},
    "--layer": {"help": "layer with the raw counts (default: X)"},
    "--library-key": {"help": "column of obs that names the slide of each spot"},
    "--gene-symbols": {"help": "column of var with the genes' symbols (default: var_names)"},
    "--min-coverage": {"type": float, "help": "share of the model's genes to ask for (default: 0.3)"},
    "--device": {"default": "auto", "help": "auto, cuda, mps or cpu (default: %(default)s)"},
    "--batch-size": {"type": int, "help": "spots at a time"},
    "--overwrite": {"action": "store_true", "help": "replace the output if it exists"},
}


def add_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add some of the options."""
    for name in names:
        parser.add_argument(name, **OPTIONS[name])


def add_output(parser: argparse.ArgumentParser, text: str, *, required: bool = True) -> None:
    """Add where the command writes to."""
    parser.add_argument("-o", "--out", type=Path, required=required, help=text)


def take(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Values of some options, to be passed on under the same names."""
    return {name: getattr(arguments, name) for name in names}
