"""What the documentation says of the code: keys, packaging, tutorials."""

import ast
import importlib.util
import inspect
import json
import operator
import re
import tomllib

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import ROOT

import sagefm as sg
from sagefm import _keys

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SLOTS = ("obs", "var", "obsm", "varm", "obsp", "layers", "uns")


@pytest.fixture(scope="module")
def generated():
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs" / "generated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keys_of(adata):
    return {(slot, key) for slot in SLOTS for key in getattr(adata, slot)}


def test_every_key_that_is_written_is_in_the_glossary(generated, slide):
    adata, model = slide, "sagefm-mini"
    before = keys_of(adata)
    absent = next(gene for gene in sg.models.load(model).vocabulary.symbols if gene not in adata.var_names)
    adata.obsm["likelihood"] = np.eye(4, dtype=np.float32)[adata.obs["domain"].cat.codes]
    sg.pp.neighborhood_graph(adata)
    sg.pp.assess(adata, model)
    sg.tl.sage_embed(adata, model)
    sg.tl.cluster(adata, n_clusters=3)
    sg.tl.cluster_markers(adata)
    sg.tl.cluster_proportions(adata, "domain")
    sg.tl.impute(adata, ["COL1A1", absent], model, intervals=0.9)
    sg.tl.annotate(adata, "domain")
    sg.tl.composition(adata, "likelihood")
    sg.tl.perturb_lr(adata, [("CXCL12", "CXCR4")], model, store_spots=True)
    sg.tl.perturb_targets(adata, {"CXCL12": ["CXCR4", "COL1A1"]}, model)
    sg.tl.gene_sensitivity(adata, ["CXCL12"], ["CXCR4"], model=model, store_spots=True)
    sg.tl.nichepca_embed(adata, n_components=5)
    spots = sg.pp.pseudospots(adata, microns_per_unit=1, spacing=300, diameter=200)
    sg.tl.mofa_embed(adata, n_factors=2, n_iterations=5)
    described = {(slot, name) for slot, names, _ in generated.documented_keys() for name in names}
    written = keys_of(adata) - before - {("obsm", "likelihood")}
    assert len(written) > 25
    assert written <= described
    assert keys_of(spots) - keys_of(adata) <= described


def test_every_slot_name_is_described(generated):
    described = {name for _, names, _ in generated.documented_keys() for name in names}
    spelled = [value for name, value in vars(_keys).items() if name.isupper() and isinstance(value, str)]
    inside_uns = {_keys.SCALEFACTORS, _keys.MICRONS_PER_PIXEL, _keys.SPOT_DIAMETER}
    for value in set(spelled) - inside_uns - {_keys.GRAPH}:
        pattern = re.escape(value).replace(r"\{\}", ".+")
        assert any(re.fullmatch(pattern, name) for name in described), value


@pytest.mark.parametrize("name", ["sagefm-mini", "sagefm-nano"])
def test_the_card_is_that_of_the_file(generated, name):
    page = generated.card_page(name)
    model = sg.models.load(name)
    assert f"{model.n_parameters:,}" in page
    assert all(donor in page for donor in model.card["left_out"])
    assert all(limit in page for limit in model.card["limits"])


def test_ecosystem_entry_and_recipe_follow_the_project():
    entry = yaml.safe_load((ROOT / "docs" / "ecosystem" / "meta.yaml").read_text())
    assert entry["name"] == entry["install"]["pypi"] == PROJECT["name"]
    assert (entry["version"], entry["license"]) == (PROJECT["version"], PROJECT["license"])
    asked = {"description", "project_home", "documentation_home", "tags", "category", "contact", "publications"}
    assert asked <= set(entry)
    recipe = yaml.safe_load((ROOT / "docs" / "ecosystem" / "recipe.yaml").read_text())
    assert recipe["context"]["version"] == PROJECT["version"]
    called = {"pytorch": "torch", "pytorch_geometric": "torch-geometric", "matplotlib-base": "matplotlib"}
    run = dict(line.split() for line in recipe["requirements"]["run"])
    assert run.pop("python") == PROJECT["requires-python"]
    ours = dict(re.fullmatch(r"([\w-]+)(>=.*)", line).groups() for line in PROJECT["dependencies"])
    assert {called.get(name, name): version for name, version in run.items()} == ours


def test_read_the_docs_runs_the_command_of_make():
    settings = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text())
    (theirs,) = settings["build"]["jobs"]["build"]["html"]
    ours = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "-m sphinx" in line).strip()
    assert theirs.replace("$READTHEDOCS_OUTPUT/html", "docs/_build/html") == ours


def test_figures_of_the_benchmark_are_those_of_its_file():
    """The table of the FAQ is written by hand; its numbers are in the measured ones."""
    measured = (ROOT / "docs" / "benchmarks" / "tables.md").read_text()
    rows = {}
    for line in measured.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 9 and cells[2] == "12,000":
            rows[cells[0], cells[1], cells[3]] = (float(cells[4]), float(cells[7]))
    asked = {
        "embedding, published size": ("embed, published, to zarr", ""),
        "embedding, `sagefm-mini`": ("embed, mini, to zarr", ""),
        "imputation of all genes, `sagefm-mini`": ("impute, mini, to zarr", ""),
        "10 ligand–receptor pairs, published size, no controls": ("perturb, published", "10"),
        "1,000 pairs, `sagefm-mini`, no controls": ("perturb, mini", "1000"),
    }
    page = (ROOT / "docs" / "faq.md").read_text()
    for label, (name, pairs) in asked.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {label} |")]
        for spots, cell in zip(("8,000", "128,000", "512,000"), line.strip("|").split("|")[1:], strict=True):
            if found := re.search(r"([\d.]+) s, ([\d.]+) GB", cell):
                seconds, memory = map(float, found.groups())
                assert seconds == pytest.approx(rows[name, spots, pairs][0], rel=0.05), (label, spots)
                assert memory == pytest.approx(rows[name, spots, pairs][1], abs=0.051), (label, spots)
            else:
                assert "not measured" in cell


def test_tutorials_link_to_pages_that_exist():
    for path in (ROOT / "tutorials").glob("*.ipynb"):
        for link in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
            if not link.startswith("http"):
                assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_the_table_of_contents_lists_every_tutorial():
    index = (ROOT / "docs" / "index.md").read_text()
    for path in (ROOT / "tutorials").glob("*.ipynb"):
        assert f"tutorials/{path.stem}\n" in index


def test_the_page_of_the_paper_names_functions_and_tests_that_exist():
    table = pd.read_csv(ROOT / "docs" / "paper.csv")
    assert not table.duplicated().any()
    for call, test in zip(table["here"], table["test, in ``tests/``"], strict=True):
        space, name = re.fullmatch(r":(?:func|class):`sagefm\.(\w+)\.(\w+)`", call).groups()
        assert name in getattr(sg, space).__all__
        file, _, name = test.strip("`").partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), test


def test_bibliography_is_cited_and_complete():
    keys = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "docs" / "references.bib").read_text(), flags=re.M))
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    assert set(re.findall(r"\{cite:p\}`(\w+)`", pages)) <= keys


def code_blocks():
    """Python of the pages, of the README, and of the text of the tutorials."""
    pages = {path.name: path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
    for path in (ROOT / "tutorials").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        pages[path.name] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for name, text in pages.items():
        yield from ((name, block) for block in re.findall(r"```python\n(.*?)```", text, flags=re.S))


def test_calls_in_the_pages_exist():
    """Names and keywords: what a page tells to call can be called so."""
    n_calls = 0
    for _page, block in code_blocks():
        for node in ast.walk(ast.parse(block)):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if not re.fullmatch(r"sg(\.\w+)+", name):
                continue
            function = operator.attrgetter(name.removeprefix("sg."))(sg)
            keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            inspect.signature(function).bind(*[None] * len(node.args), **keywords)
            n_calls += 1
    assert n_calls > 60
