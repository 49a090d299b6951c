"""``sagefm demo | assess | report | embed | impute | perturb | histology | evaluate | models | prepare | pretrain``.

Exit codes: 0 done, 1 refused or failed with a message, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sagefm as sg
from sagefm._io.files import explain
from sagefm._settings import logger, settings
from sagefm.cli import _histology, _tools, _training
from sagefm.cli._files import headless
from sagefm.cli._options import add_output
from sagefm.cli._result import Result, Warnings

# Advice in messages, as a command says it.
COMMANDS = {'model="sagefm-mini"': "--model sagefm-mini", 'sg.models.install("FILE")': "sagefm models --install FILE"}
EXPECTED = (ValueError, KeyError, TypeError, OSError, RuntimeError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.quiet:
        settings.verbosity, settings.progress_bars = "ERROR", False
    warnings = Warnings()
    logger.addHandler(warnings)
    about: dict[str, Any] = {"command": arguments.command, "warnings": warnings.texts}
    try:
        result = arguments.run(arguments)
        if text := result.to_json(exit_code=0, **about) if arguments.json else result.text:
            print(text)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has enough, as in: sagefm models | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 0
    except KeyboardInterrupt:
        logger.error("interrupted; %s", arguments.interrupted)
        return 130
    except Exception as error:
        if arguments.debug:
            raise
        text = _say(error, arguments.interrupted)
        logger.error("error: %s", text)
        if arguments.json:
            print(Result(facts={"error": text}).to_json(exit_code=1, **about))
        return 1
    finally:
        logger.removeHandler(warnings)
    return 0


def _say(error: Exception, kept: str) -> str:
    """What an error says, in the words of the command line; ``kept`` is what a stop leaves of the output."""
    is_quoted = isinstance(error, KeyError) and error.args  # by KeyError itself
    text = str(error.args[0]) if is_quoted else explain(error)
    # HDF5 has the reason in its text alone.
    if getattr(error, "errno", None) == errno.ENOSPC or text == os.strerror(errno.ENOSPC).lower():
        text = f"the disk is full; {kept}"
    elif isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror.lower()}."
    elif isinstance(error, MemoryError):
        text = "out of memory. Set a smaller --batch-size, or use a machine with more."
    elif not isinstance(error, EXPECTED):
        text = f"{type(error).__name__}: {text} (sagefm --debug ... shows where)"
    for call, command in COMMANDS.items():
        text = text.replace(call, command)
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sagefm", description="SAGE-FM on spatial transcriptomics slides.")
    parser.add_argument("--version", action="version", version=f"sagefm {sg.__version__}")
    parser.set_defaults(interrupted="nothing was written to the output.")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    parser.add_argument("--quiet", action="store_true", help="errors only, no progress bars")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    demo = commands.add_parser("demo", help="run the main job on a simulated slide, offline")
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("sagefm-demo"),
        help="folder to write, over an earlier demo (default: %(default)s)",
    )
    demo.set_defaults(run=_demo)
    _tools.add(commands)
    _add_evaluate(commands)
    models = commands.add_parser("models", help="list the models, or install weights that were fetched by hand")
    models.add_argument("--install", type=Path, metavar="FILE", help="check the file and put it where models are read")
    models.set_defaults(run=_models)
    _histology.add(commands)
    _training.add(commands)
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="say what came of it as one JSON object")
    return parser


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="compare embeddings on labelled sections: tables and a report")
    evaluate.add_argument("config", type=Path, help="settings, .toml, or a folder of sections for the defaults")
    add_output(evaluate, "folder to write; a run there is resumed")
    evaluate.add_argument("--model", help="with a folder: name or path (default: sage-fm-hest1k)")
    evaluate.add_argument("--preset", choices=["oscc", "gbm", "clustering"], help="a task of the paper")
    evaluate.add_argument("--overwrite", action="store_true", help="start again over a run with other settings")
    evaluate.set_defaults(run=_evaluate, interrupted="what is done is kept, and the same command goes on from there.")


def _demo(arguments: argparse.Namespace) -> Result:
    from sagefm.cli._demo import run

    return run(arguments.out)


def _evaluate(arguments: argparse.Namespace) -> Result:
    config: Path | dict[str, str] = arguments.config
    if arguments.model is not None:
        if not arguments.config.is_dir():
            raise ValueError("--model goes with a folder of sections; a configuration names its models itself.")
        config = {"sections": str(arguments.config), "model": arguments.model}
    with headless():
        tables = sg.benchmark.run_protocol(
            config, arguments.out, preset=arguments.preset, overwrite=arguments.overwrite
        )
    page = arguments.out / "report.html"
    return Result(f"report: {page}", (page,), {"tables": list(tables)})


def _models(arguments: argparse.Namespace) -> Result:
    if arguments.install is not None:
        sg.models.install(arguments.install)
    lines, known = [], sg.models.available()
    for name, entry in known.iterrows():
        where = "ready" if entry["local"] else f"downloaded on first use, {entry['size_mb']} MB"
        lines.append(f"{name:16s} {entry['description']}\n{'':16s} licence: {entry['licence']}; {where}")
    return Result("\n".join(lines), facts={"models": known.rename_axis("name").reset_index().to_dict("records")})
