"""Sphinx configuration."""

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import generated
from docutils import nodes
from latex2mathml.converter import convert

generated.write()

project = "sagefm"
author = "the sagefm developers"
copyright = f"2026, {author}"
version = release = installed("sagefm")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
]
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
html_theme = "sphinx_book_theme"
html_title = "sagefm"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {"show_toc_level": 2, "navbar_persistent": []}
templates_path = ["_templates"]
exclude_patterns = ["_build", "**.ipynb_checkpoints", "benchmarks/*.md", "generated/*.md"]

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_default_options = {"no-value": True}
napoleon_google_docstring = False
napoleon_numpy_docstring = True
typehints_defaults = "braces"
always_document_param_types = False
nb_execution_mode = "off"  # notebooks are committed with their outputs
nb_merge_streams = True
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Types of other libraries are named, not linked: the docs build without a network.
# So are sagefm's private modules and those of histology, which annotations may come from.
nitpick_ignore_regex = [("py:.*", r"(?!sagefm).*"), ("py:.*", r"sagefm\..*\._.*"), ("py:.*", r"sagefm\.histology\..*")]

# Formulas as MathML, which browsers draw by themselves: no script has to come from elsewhere.
html_math_renderer = "mathml"


def setup(app):
    """Register the renderer."""

    def draw(display):
        def visit(translator, node):
            translator.body.append(convert(node.astext(), display=display))
            raise nodes.SkipNode

        return visit, None

    app.add_html_math_renderer("mathml", draw("inline"), draw("block"))
