"""Pages that are made of the package itself: the glossary of keys, the cards of our models, the tutorials."""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from pathlib import Path

import sagefm as sg
from sagefm import _keys

HERE = Path(__file__).parent
SLOTS = ("obs", "var", "obsm", "obsp", "layers", "uns", "tables", "shapes")


def documented_keys() -> Iterator[tuple[str, list[str], str]]:
    """Slot, default names and meaning of every key that ``_keys.py`` describes."""
    body = ast.parse(Path(_keys.__file__).read_text()).body
    default = ""
    for assignment, text in itertools.pairwise(body):
        if not isinstance(assignment, ast.Assign) or not isinstance(text, ast.Expr):
            continue
        value, lines = ast.literal_eval(assignment.value), ast.literal_eval(text.value)
        names = [value] if isinstance(value, str) else list(value)
        if "{}" not in names[0]:
            default = names[0]
        for line in textwrap.dedent(lines).strip().splitlines():
            slot, colon, meaning = line.partition(" : ")
            if colon:
                yield slot, [name.replace("{}", default) for name in names], meaning


def writers(slot: str, name: str) -> list[str]:
    """Public functions whose docstring says that they write the key."""
    found = []
    for space in ("pp", "tl", "datasets"):
        module = getattr(sg, space)
        for function in module.__all__:
            returns = (inspect.getdoc(getattr(module, function)) or "").partition("Returns\n-------\n")[2]
            if f'{slot}["{name}"]' in returns.partition("Raises\n------\n")[0]:
                found.append(f"{space}.{function}")
    return found


def keys_page() -> str:
    """One table a slot."""
    found = sorted(documented_keys(), key=lambda row: (SLOTS.index(row[0]), row[1][0].lower()))
    parts = []
    for slot in SLOTS:
        rows = [
            f"| {', '.join(f'`{name}`' for name in names)} | {meaning.replace('``', '`').replace('|', chr(92) + '|')} "
            f"| {', '.join(f'{{func}}`{writer} <sagefm.{writer}>`' for writer in writers(slot, names[0]))} |"
            for where, names, meaning in found
            if where == slot
        ]
        if rows:
            parts.append("\n".join([f"## {slot}", "", "| key | what it holds | written by |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def table(head: list[str], rows: list[list[object]]) -> list[str]:
    """A table, as lines."""
    return ["| " + " | ".join(map(str, cells)) + " |" for cells in (head, ["---"] * len(head), *rows)]


def card_page(name: str) -> str:
    """What the file of a model says of itself."""
    model = sg.models.load(name)
    card, training = model.card, model.card["training"]
    recipe = dict(training["recipe"])
    architecture, hidden = recipe.pop("architecture"), recipe.pop("hidden")
    file = Path(sg.models.__file__).parent / "weights" / f"{name}.safetensors"
    facts = {
        "architecture": f"{architecture}, hidden layers {'-'.join(map(str, hidden))}: [the GraphSAGE family]"
        "(model.md#the-graphsage-family)",
        "parameters": f"{model.n_parameters:,}",
        "file": f"{file.stat().st_size / 1e6:.1f} MB, float16, in the package",
        "trained on": f"{len(training['sections'])} sections, {training['spots']:,} spots, "
        f"{len(training['groups'])} donors",
        "recipe": ", ".join(f"{name} {value}" for name, value in recipe.items() if value is not None),
        "steps": f"{training['steps']:,} in {training['epochs']} epochs, seed {training['seed']}",
        "licence": card["licence"],
    }
    data = [list(part.values()) for part in card["data"]]
    left_out = [
        [
            donor,
            *(f"{row['rmse']:.4f}" for row in scores.values()),
            *(f"{row['r_beyond_depth']:.3f}" for row in scores.values()),
        ]
        for donor, scores in card["left_out"].items()
    ]
    predictors = list(next(iter(card["left_out"].values()), []))
    heads = [f"{metric}, {name}" for metric in ("RMSE", "r beyond depth") for name in predictors]
    lines = [
        card["summary"],
        "",
        *table(["", ""], [list(fact) for fact in facts.items()]),
        "",
        "Data, with licences as far as we know them:",
        "",
        *table(list(card["data"][0]), data),
        "",
        "Limits:",
        "",
        *(f"- {limit}" for limit in card["limits"]),
    ]
    if left_out:
        what = "The same recipe, trained without the donor, beside plain predictors (a quarter of the genes hidden):"
        lines += ["", what, "", *table(["donor", *heads], left_out)]
    return "\n".join(lines) + "\n"


def tutorial_pages() -> dict[str, str]:
    """The notebooks, whose links to these pages are right in the repository."""
    notebooks = sorted((HERE.parent / "tutorials").glob("*.ipynb"))
    return {path.name: path.read_text().replace("](../docs/", "](../") for path in notebooks}


def write() -> None:
    """Write what has changed."""
    pages = {"generated/keys.md": keys_page()}
    pages |= {f"generated/sagefm_{name}.md": card_page(f"sagefm-{name}") for name in ("mini", "nano")}
    pages |= {f"tutorials/{name}": text for name, text in tutorial_pages().items()}
    for name, text in pages.items():
        path = HERE / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
