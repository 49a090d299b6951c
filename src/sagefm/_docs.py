"""Texts of the parameters that several public functions share, and the decorator that puts them into docstrings.

Among its parameters, a docstring names a shared text in braces, on a line of its own::

    {table_key}
    {copy}

Braces that belong to the docstring, such as those of a dict in an example, are doubled. A parameter with another
default or another meaning than the shared text says is described in the docstring of its function.
"""

from __future__ import annotations

from inspect import cleandoc
from typing import Any, TypeVar

Documented = TypeVar("Documented", bound=Any)

TEXTS = {
    # What is read.
    "adata": """adata
    Slide with raw counts and the graph of :func:`sagefm.pp.neighborhood_graph`.""",
    "sections": """sections
    One or several slides, each with raw counts and the graph of :func:`sagefm.pp.neighborhood_graph`. They are not
    modified.""",
    "model": """model
    Name or path of a model, or a loaded model. See :func:`sagefm.models.load`.""",
    "layer": """layer
    Layer with raw counts. By default, ``X``.""",
    "spatial_key": """spatial_key
    Coordinates of the spots in ``obsm``.""",
    "connectivity_key": """connectivity_key
    Spatial graph in ``obsp``, with or without the suffix ``_connectivities``. Only its pattern is used: weights and
    the diagonal are ignored.""",
    "library_key": """library_key
    Column of ``obs`` with the slide of each spot. By default, the ``library_key`` of
    :func:`sagefm.pp.neighborhood_graph`.""",
    "library_id": """library_id
    Slides to draw, one name or several, with a panel for each. By default, all slides.""",
    "group_key": """group_key
    Column of ``obs`` with the groups that are held out together, ideally donors. By default, ``library_key``.""",
    "label_key": """label_key
    Column of ``obs`` with the labels. Spots without a label have a missing value.""",
    "merge": """merge
    Class of each label, such as ``{"invasive cancer": "tumour", "undetermined": None}``. ``None`` leaves out the
    spots with this label. Labels that are not in the mapping stay as they are.""",
    "target_key": """target_key
    Likelihoods in ``obsm``, between 0 and 1, shape (spots, classes), as a ``DataFrame`` or an array. Rows of missing
    values (NaN) are predicted and not used for training.""",
    "use_rep": """use_rep
    Representation in ``obsm`` of ``adata`` and of ``reference``, computed by the same model.""",
    "use_reps": """use_reps
    Representations in ``obsm``.""",
    "histology_key": """histology_key
    Key of the patches, the ``key_added`` of :func:`sagefm.pp.histology_patches`.""",
    "gene_symbols": """gene_symbols
    Column of ``var`` with gene symbols or Ensembl ids. By default, ``var_names``.""",
    "key": """key
    Key of the results, the ``key_added`` of the function that computed them.""",
    "table_key": """table_key
    Table to use in ``SpatialData`` objects.""",
    # How it is computed.
    "scale": """scale
    ``"slide"`` standardizes the representation within each slide, which removes what only distinguishes slides, such
    as depth. ``"none"`` does not. ``"auto"`` chooses the option that predicts held-out groups better, and ``"slide"``
    if there is only one group.""",
    "test_groups": """test_groups
    Groups that are held out together and scored one by one. By default, each group is held out in turn.""",
    "pooled": """pooled
    Score the spots of all ``test_groups`` as one group, named ``"pooled"``, as the paper does.""",
    "n_folds": """n_folds
    Parts that the groups of training are split into for cross-validation, which chooses the settings.""",
    "n_epochs": """n_epochs
    Number of passes over the spots.""",
    "rng": """rng
    Seed or random number generator.""",
    "levels": """levels
    Table of the lowest and highest log1p count to clamp each gene at, as :func:`sagefm.tl.ligand_levels` returns it.
    By default, each gene is clamped at the extremes of this call's spots. So are genes that the table doesn't name.""",
    "similar": """similar
    Whether predictions read the mean of the slide's similar spots, wherever they lie, if the model has that term.
    It takes a principal component analysis for each set of genes that are hidden together. Without it, and on slides
    of fewer than 50 spots, the neighbors take their place.""",
    "seed": """rng
    Seed of the random numbers.""",
    "device": """device
    ``"cuda"``, ``"mps"`` or ``"cpu"``. ``"auto"`` chooses the first of these that is available.""",
    "batch_size": """batch_size
    Number of spots per batch. It affects memory and speed, but not the results. By default, 2,048 (1,024 in
    ``perturb_lr`` and ``perturb_targets``).""",
    "n_patches": """batch_size
    Number of patches per batch. It affects memory and speed, but not the results.""",
    "dtype": """dtype
    Precision of matrix products. ``"tf32"`` needs a recent CUDA GPU, ``"bfloat16"`` works on any GPU. The page "Speed
    and memory" of the documentation lists the errors of both.""",
    "store": """store
    Folder to create, ending in ``.zarr``. The result is written to it during the computation instead of being held in
    memory, and ``adata`` gets a dask array that reads it. The folder is an ``AnnData`` without counts
    (``anndata.read_zarr``) and appears under its name when it is complete.""",
    "resume": """resume
    Continue from the last checkpoint in ``run_dir``. On a CPU, the weights are then the same, bit for bit, as without
    the interruption.""",
    "run_dir": """run_dir
    Folder for checkpoints and logs (CSV, and TensorBoard if it is installed). By default, a folder next to
    ``out``.""",
    "checkpoint_steps": """checkpoint_steps
    Number of steps between checkpoints. An interruption loses at most this many steps.""",
    "trainer_options": """trainer_options
    Further options of Lightning's ``Trainer``.""",
    # What is written.
    "key_added": """key_added
    Key to write the results to. Data of other functions is overwritten under the default key only.""",
    "copy": """copy
    Return a copy instead of writing in place. Of a ``SpatialData``, this is a copy of the table.""",
    # Plots.
    "show": """show
    Show the figure. By default, scanpy's ``settings.autoshow`` decides, and a plot into given axes is not shown.""",
    "save": """save
    File to write the figure to.""",
    "return_fig": """return_fig
    Return the figure instead of showing it.""",
    "ax": """ax
    Axes to draw into. By default, a new figure is created.""",
    "figsize": """figsize
    Width and height of the figure in inches.""",
    "title": """title
    Title of the figure, or of its only panel in place of the usual one.""",
    "cmap": """cmap
    Color map of matplotlib.""",
    "palette": """palette
    Colors of the groups: a list, or a color map of matplotlib. By default, the colors that scanpy has stored for
    them, if any.""",
    "map_options": """kwargs
    Further options of :func:`squidpy.pl.spatial_scatter`, such as ``size``, ``alpha``, ``img=False`` (without the image
    of the slide) or ``scalebar_dx`` (µm per pixel; by default of Visium).""",
    "metric": """metric
    Column to show.""",
    "n_pairs": """n_pairs
    Maximum number of pairs to show if ``pairs`` is not given.""",
    "distances": """data
    Result of :func:`sagefm.benchmark.centroid_distances`.""",
    # Downloads.
    "sha256": """sha256
    Expected digest of each file, by file name, as logged by an earlier call.""",
    "base_url": """base_url
    Server to download from, such as a mirror.""",
}
"""Entries of the section "Parameters", by the name that docstrings use."""


def fill_docstring(documented: Documented) -> Documented:
    """Replace ``{name}`` in the docstring of a function or class by the shared text."""
    if documented.__doc__:  # None under python -OO
        documented.__doc__ = cleandoc(documented.__doc__).format_map(TEXTS)
    return documented
