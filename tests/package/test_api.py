"""The public interface: signatures, docstrings, documentation, imports."""

import ast
import doctest
import importlib
import inspect
import pickle
import re
import subprocess
import sys
import textwrap

import matplotlib.pyplot as plt
import pytest
from helpers import ROOT

import sagefm as sg
from sagefm._docs import TEXTS, fill_docstring

NAMESPACES = {
    name: getattr(sg, name) for name in ("pp", "tl", "pl", "read", "get", "models", "datasets", "benchmark", "train")
}
FUNCTIONS = {
    f"{space}.{name}": getattr(module, name)
    for space, module in NAMESPACES.items()
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
}
FUNCTIONS["report"] = sg.report
CLASSES = {
    f"{space}.{name}": getattr(module, name)
    for space, module in NAMESPACES.items()
    for name in module.__all__
    if inspect.isclass(getattr(module, name))
}
ON_A_TABLE = {"pl.missingness_curve", "pl.centroid_distances", "pl.distance_error", "pl.benchmark_violin"}
PLOTS = {name: function for name, function in FUNCTIONS.items() if name.startswith("pl.")}
HAS_PANELS = {"pl.annotation", "pl.composition", "pl.histology_patches", "pl.imputation"}
HAS_PANELS |= {"pl.predicted_expression", "pl.superresolved_expression", "pl.tsne"}
HAS_A_FIGURE = HAS_PANELS | {"pl.centroid_distances"}  # of its own, so no axes can be given
MAKES_ANOTHER = {"pp.pseudospots", "tl.superresolve_expression"}
ON_FILES = {"tl.embed_sections", "tl.ligand_levels", "tl.perturb_sections"}
ON_ADATA = {
    name: function
    for name, function in FUNCTIONS.items()
    if name[:2] in ("pp", "tl", "pl") and name not in ON_A_TABLE | ON_FILES
}


@pytest.mark.parametrize("module", NAMESPACES.values(), ids=NAMESPACES)
def test_namespaces_export_what_they_list(module):
    public = {name for name, value in vars(module).items() if inspect.isfunction(value) and name[0] != "_"}
    assert public <= set(module.__all__)


@pytest.mark.parametrize(("name", "function"), FUNCTIONS.items(), ids=FUNCTIONS)
def test_signatures(name, function):
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    assert len(positional) <= 3
    assert all(p.annotation is not p.empty for p in parameters), "untyped parameter"
    assert signature.return_annotation is not signature.empty
    if name in ON_ADATA:
        assert positional[0].name == "adata"
        assert positional[0].annotation == "AnnData | SpatialData"
        assert signature.parameters["table_key"].default == "table"
    if name in MAKES_ANOTHER:
        assert signature.return_annotation == "AnnData"
    elif name[:2] in ("pp", "tl") and name in ON_ADATA:
        assert signature.parameters["copy"].default is False
        assert signature.return_annotation == "AnnData | None"


@pytest.mark.parametrize(("name", "function"), PLOTS.items(), ids=PLOTS)
def test_plots_have_one_contract(name, function):
    """That of scanpy; what they return is tested on their examples."""
    signature = inspect.signature(function)
    options = {"show": "bool | None", "save": "str | Path | None", "return_fig": "bool | None", "title": "str | None"}
    options["figsize"] = "tuple[float, float] | None"
    if name not in HAS_A_FIGURE:
        options["ax"] = "Axes | None"
    for option, annotation in options.items():
        parameter = signature.parameters[option]
        assert (parameter.default, parameter.annotation) == (None, annotation)
        assert parameter.kind is parameter.KEYWORD_ONLY
    if "spatial_key" in signature.parameters:  # maps, which squidpy draws
        assert {"library_key", "library_id"} <= set(signature.parameters)
        assert {"cmap", "palette"} & set(signature.parameters)
        assert list(signature.parameters)[-1] == "kwargs"
    panels = "list[Axes]" if name in HAS_PANELS else "Axes"
    if name not in HAS_PANELS and "spatial_key" in signature.parameters:  # one panel a slide
        panels = "Axes | list[Axes]"
    assert signature.return_annotation == f"{panels} | Figure | None"


@pytest.mark.parametrize(("name", "function"), FUNCTIONS.items(), ids=FUNCTIONS)
def test_docstrings(name, function):
    text = inspect.getdoc(function)
    assert text.splitlines()[0].endswith(".")
    for section in ("Returns", "Examples") if name[:2] in ("pp", "tl", "pl") else ("Returns",):
        assert f"{section}\n{'-' * len(section)}\n" in text, section
    documented = (
        re.split(r"\n\w+\n-+\n", text.partition("Parameters\n----------\n")[2])[0] if "Parameters" in text else ""
    )
    names = [part.strip() for line in documented.splitlines() if line and line[0] != " " for part in line.split(",")]
    assert names == list(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_docstrings_are_filled(name):
    """No name of a shared text is left over, and no shared text is repeated by hand."""
    documented = FUNCTIONS.get(name) or CLASSES[name]
    source = textwrap.dedent(inspect.getsource(documented))
    written = inspect.cleandoc(ast.get_docstring(ast.parse(source).body[0]))
    filled = inspect.getdoc(documented)
    assert not re.search(r"\{\{|\}\}|^\s*\{\w+\}$", filled, flags=re.M)
    for text, entry in TEXTS.items():
        assert f"\n{entry}\n" not in written, f"write {{{text}}}"


def test_texts_are_shared():
    docstrings = [inspect.getdoc(documented) for documented in (*FUNCTIONS.values(), *CLASSES.values())]
    uses = {text: sum(f"\n{entry}\n" in docstring for docstring in docstrings) for text, entry in TEXTS.items()}
    assert min(uses.values()) > 1, uses


@fill_docstring
def documented(copy: bool = False) -> dict:
    """Do nothing.

    Parameters
    ----------
    {copy}

    Returns
    -------
    ``{{}}``
    """
    return {"copy": copy}


@pytest.mark.process
def test_filling_changes_the_docstring_alone():
    assert inspect.getdoc(documented).endswith(f"{TEXTS['copy']}\n\nReturns\n-------\n``{{}}``")
    assert str(inspect.signature(documented)) == "(copy: bool = False) -> dict"
    assert pickle.loads(pickle.dumps(documented)) is documented
    assert not hasattr(documented, "__wrapped__")
    code = "import sagefm; print(sagefm.tl.cluster.__doc__, sagefm.tl.cluster.__name__)"
    result = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "None cluster"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_examples_run(name):
    function = FUNCTIONS.get(name) or CLASSES[name]
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(function, name, module=sys.modules[function.__module__])
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    failures = []
    runner.run(example, out=failures.append, clear_globs=False)
    assert not failures, "".join(failures)
    assert example.examples
    if name in PLOTS:
        drawn = example.globs["axes"] if name in HAS_PANELS else [example.globs["ax"]]
        assert isinstance(drawn, list)
        assert all(ax.get_figure() is plt.gcf() for ax in drawn), "plt.savefig would miss the figure"
        assert plt.gcf().get_suptitle() == "" or name == "pl.centroid_distances"
        call = example.examples[-1].source.replace("show=False", "show=False, title='A title', figsize=(9, 8)")
        exec(call, example.globs)
        figure = plt.gcf()
        assert "A title" in {figure.get_suptitle(), *(figure.axes[0].get_title(where) for where in ("left", "center"))}
        assert tuple(figure.get_size_inches()) == (9, 8)


def test_everything_public_is_in_the_docs():
    page = (ROOT / "docs" / "api.md").read_text()
    listed = set(
        re.findall(
            r"^\s*((?:pp|tl|pl|read|get|models|datasets|benchmark|train)\.\w+|report|settings)\s*$", page, flags=re.M
        )
    )
    assert listed == {*FUNCTIONS, *CLASSES, "models.GCN", "models.SAGE", "settings"}


LAYERS = {
    "": set(),
    "_io": {""},
    "models": {"", "_io"},
    "pp": {"", "_io", "models"},
    "read": {"", "_io"},
    "get": {""},
    "datasets": {"", "_io", "models", "pp", "read"},
    "tl": {"", "_io", "models", "pp", "datasets", "read"},
    "pl": {"", "_io", "models", "pp"},
    "_report": {"", "_io", "models", "pp", "tl", "pl"},
    "benchmark": {"", "_io", "models", "pp", "datasets", "tl", "pl", "read"},
    "train": {"", "_io", "models", "pp", "tl", "benchmark", "read"},
    "histology": {"", "_io", "models", "pp", "tl", "pl", "train"},
    "cli": {"", "_io", "models", "pp", "datasets", "tl", "pl", "benchmark", "train", "histology", "read"},
}


def imports_of(file):
    """Modules of the package that a file imports, also within functions and for type checkers."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert not [alias for alias in node.names if alias.name.startswith("sagefm.")], f"{file}: from ... import"
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} imports relatively"
            module = (node.module or "").split(".")
            if module[0] == "sagefm":
                yield from [module[1:]] if module[1:] else [[alias.name] for alias in node.names]


def test_imports_point_one_way():
    """What each room may import; namespaces re-export histology by name alone, which is no import."""
    package = ROOT / "src" / "sagefm"
    assert {folder.name for folder in package.iterdir() if (folder / "__init__.py").exists()} == {*LAYERS} - {""}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package).parts
        layer = parts[0] if len(parts) > 1 else ""
        if parts == ("__init__.py",):
            continue
        for module in imports_of(file):
            target = module[0] if module[0] in LAYERS else ""
            is_name = parts[-1] == "__init__.py" and target == "histology"  # for type checkers
            assert target == layer or target in LAYERS[layer] or is_name, f"{file} imports sagefm.{'.'.join(module)}"


def test_slot_names_are_spelled_in_keys_alone():
    from sagefm import _keys

    names = {"sage_imputed", "X_sage", "sage_cluster", "sage_gene", "sage_genes", "array_row", "array_col"}
    assert names <= {value for value in vars(_keys).values() if isinstance(value, str)}
    for file in (ROOT / "src" / "sagefm").rglob("*.py"):
        if file.name == "_keys.py":
            continue
        tree = ast.parse(file.read_text())
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docstrings:
                assert node.value not in names, f"{file.name}:{node.lineno}"


@pytest.mark.process
@pytest.mark.parametrize(
    "code",
    ["import sagefm", "import sagefm.cli, contextlib\nwith contextlib.suppress(SystemExit): sagefm.cli.main(['-h'])"],
)
def test_start_is_light(code):
    """Nothing that takes time is imported before it is needed."""
    code += (
        "\nimport sys; heavy = {'torch', 'scanpy', 'squidpy', 'spatialdata', 'anndata', 'pandas', 'scipy', 'sklearn', "
        "'dask', 'distributed', 'matplotlib', 'lightning', 'zarr'} & set(sys.modules); print(sorted(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("[]")


def test_namespaces_come_when_asked_for():
    assert {"pp", "tl", "pl", "models", "datasets", "benchmark", "train", "settings"} <= set(dir(sg))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sg.nothing  # noqa: B018


def test_library_does_not_print():
    for file in (ROOT / "src" / "sagefm").rglob("*.py"):
        if file.parent.name != "cli":
            calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
            assert not [call for call in calls if getattr(call.func, "id", "") == "print"], file.name


def test_typed_and_versioned():
    assert (ROOT / "src" / "sagefm" / "py.typed").exists()
    assert sg.__version__ in (ROOT / "CHANGELOG.md").read_text()
    assert sg.__version__ in (ROOT / "CITATION.cff").read_text()
    assert importlib.import_module("sagefm.models").GCN.__name__ == "GCN"
