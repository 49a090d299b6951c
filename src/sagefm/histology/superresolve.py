"""Expression between the spots, from the histology there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sagefm import _keys
from sagefm._anndata import get_anndata, recorded_params
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm._types import Array, Floats32, Ints
from sagefm._utils import check_key, check_positive
from sagefm.histology.embed import FUNCTION as EMBEDDED
from sagefm.histology.embed import FeatureExtractor, check_size
from sagefm.histology.expression import Predictor, RidgeRegressor, read_expression
from sagefm.histology.patches import Patches, glass_density, tissue_fraction
from sagefm.histology.predict import FUNCTION as PREDICTED
from sagefm.histology.predict import read_features
from sagefm.histology.prediction import Regression
from sagefm.histology.spot_patches import as_spatialdata, find_slides, get_params, open_patches
from sagefm.models import Encoder
from sagefm.pp._regions.regions import add_spots, refuse_taken
from sagefm.pp._regions.units import find_scales
from sagefm.tl._points import get_column, get_points, standardize_like

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

FUNCTION = "tl.superresolve_expression"
MAX_POINTS = 5_000_000
# Of a SpatialData: the table, its circles, and the columns that link them.
ELEMENTS = (
    _keys.SUPERRESOLVED_TABLE,
    _keys.SUPERRESOLVED_CIRCLES,
    _keys.SUPERRESOLVED_REGION,
    _keys.SUPERRESOLVED_ID,
)


@fill_docstring
def superresolve_expression(
    adata: AnnData | SpatialData,
    stride: float = 50.0,
    *,
    reference: AnnData | SpatialData | None = None,
    model: str | Path | Encoder | None = None,
    microns_per_unit: float | None = None,
    min_tissue: float = 0.25,
    expression_key: str = _keys.HISTOLOGY_EXPRESSION,
    device: str = "auto",
    batch_size: int = 64,
    key_added: str = _keys.SUPERRESOLVED,
    table_key: str = "table",
) -> AnnData:
    """Predict expression on a dense grid over the tissue, by the fits that predicted the spots.

    Every point is predicted as its nearest spot was: by a fit that hasn't seen that spot's group, or the fit to the
    ``reference``. A point at a spot's center gets the spot's prediction.

    Parameters
    ----------
    adata
        Slides that :func:`predict_expression` predicted from features of :func:`histology_embed`, with their patches.
    stride
        Distance of neighboring points, in µm.
    reference
        What :func:`predict_expression` learned from, if that was a reference.
    model
        Encoder of the features. By default, the one that :func:`histology_embed` recorded.
    microns_per_unit
        µm per unit of the coordinates. By default, Space Ranger's scale factors give it.
    min_tissue
        Points whose patch is less tissue than this are left out; fat is hardly more than glass. So are points that are
        farther from every spot than spots are from each other.
    expression_key
        Which prediction of spots.
    {device}
    {n_patches}
    key_added
        Key of the record in the new table. In a ``SpatialData``, also the name of the elements that are added.
    {table_key}

    Returns
    -------
    A new ``AnnData`` of shape (points, genes), float32 ``log1p`` at a common depth; ``adata`` stays as it is. It has

    ``obsm["spatial"]``
        Coordinates, in the unit of the spots'.
    ``obs["histology_tissue"]``, ``obs["nearest_spot"]``
        Share of tissue in the patch, and the nearest spot, to aggregate by.
    ``var["reliability"]``
        Pearson r of each gene at spots of held-out groups. Between the spots nothing is measured: it can't be better.
    ``uns["superresolved"]``
        ``params``; ``scores`` of the prediction of spots. ``uns["spatial"]`` is that of ``adata``.

    The slides' ``library_key`` column of ``obs`` is there too. Of a ``SpatialData`` the table is added as
    ``tables["superresolved"]``, annotating circles ``shapes["superresolved_circles"]`` as wide as the stride.

    Raises
    ------
    KeyError
        If spots weren't predicted, or there are no patches.
    ValueError
        If the unit of the coordinates isn't known, the features aren't of :func:`histology_embed`, a reference is
        missing or isn't the one, or no point lies on tissue.

    Notes
    -----
    A patch is wider than the stride (224 pixels of 0.5 µm are 112 µm), so neighboring points share most of what they
    see; detail finer than a patch is smoothed. Where groups part a slide, the map has a seam between what different
    fits predict. Every point is a patch to describe, as of :func:`histology_embed`: halving the stride takes four times
    as long.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=10, n_cols=10, n_genes=1000, image=True)
    >>> sg.pp.histology_patches(adata, size=64)
    >>> sg.tl.histology_embed(adata)
    >>> adata.obs["half"] = (adata.obs["array_row"] < 5).astype(str)
    >>> sg.tl.predict_expression(adata, 20, group_key="half")
    >>> dense = sg.tl.superresolve_expression(adata, 60, microns_per_unit=1)
    >>> dense.n_obs > adata.n_obs, dense.n_vars
    (True, 20)
    """
    import anndata as ad

    stride = check_positive("stride", stride)
    check_key("key_added", key_added)
    sdata = as_spatialdata(adata)
    adata = get_anndata(adata, table_key)
    table, circles, region_key, instance_key = (name.format(key_added) for name in ELEMENTS)
    if sdata is not None:
        refuse_taken(sdata, table, circles, key_added, FUNCTION)
    fits = SpotFits(adata, expression_key, None if reference is None else get_anndata(reference, table_key))
    made_by = _embed_params(adata, fits.use_rep)
    extractor = FeatureExtractor(made_by["model"] if model is None else model, device)
    cut = get_params(adata, made_by["histology_key"])
    check_size(extractor.encoder, cut["size"])
    library_key = cut.get("library_key")
    slides = find_slides(adata, sdata, library_key, cut["spatial_key"])
    if microns_per_unit is None:
        microns_per_unit = cut.get("microns_per_unit")
    scales = find_scales(adata, [slide.label for slide in slides], microns_per_unit)
    parts = []
    opened = open_patches(adata, sdata, made_by["histology_key"])
    for slide, (rows, patches), scale in zip(slides, opened, scales, strict=True):
        grid = _cover_tissue(patches, rows, stride / scale, min_tissue)
        if not len(grid.patches):
            raise ValueError(
                f"no point of {slide.title} has min_tissue={min_tissue} of tissue in its patch. Set a smaller one."
            )
        logger.info("Describing %d points, %g µm apart.", len(grid.patches), stride)
        expression = fits.predict(extractor(grid.patches, batch_size), grid.spots)
        parts.append(grid.table(adata, expression, "" if slide.label is None else f"{slide.label}_"))
    dense = ad.concat(parts)
    dense.var_names = fits.expression.genes
    sizes = [part.n_obs for part in parts]
    if library_key is not None:
        dense.obs[library_key] = pd.Categorical(np.repeat([slide.label for slide in slides], sizes))
    params: dict[str, Any] = {"function": FUNCTION, "stride": stride, "model": extractor.name, "min_tissue": min_tissue}
    params |= {"expression_key": expression_key, "microns_per_unit": scales}
    params |= {} if library_key is None else {"library_key": library_key}
    dense.uns[key_added] = {"params": params}
    if fits.scores is not None:
        dense.uns[key_added]["scores"] = fits.scores.copy()
        dense.var["reliability"] = fits.scores["r"].reindex(dense.var_names)
    if isinstance(images := adata.uns.get(_keys.SPATIAL), Mapping):
        dense.uns[_keys.SPATIAL] = dict(images)
    logger.info("Predicted %d genes at %d points.", dense.n_vars, dense.n_obs)
    if sdata is None:
        return dense
    regions = [slide.region for slide, size in zip(slides, sizes, strict=True) for _ in range(size)]
    radius = np.repeat(stride / 2 / np.array(scales), sizes)
    xy = dense.obsm[_keys.SPATIAL]
    return add_spots(sdata, dense, xy, radius, regions, table, circles, region_key, instance_key)


class SpotFits:
    """The fits that predicted the spots of a slide, and which of them predicted which spot."""

    def __init__(self, adata: AnnData, key: str, reference: AnnData | None) -> None:
        params = recorded_params(adata, key)
        if params.get("function") != PREDICTED or key not in adata.obsm:
            run = _keys.advise("sg.tl.predict_expression(adata)", key)
            raise KeyError(f"no prediction of spots in adata.uns[{key!r}]. Run {run} first.")
        if params["reference"] != (reference is not None):
            raise ValueError(
                "the spots were predicted from a reference: pass it as reference=..."
                if params["reference"]
                else "the spots were predicted from each other, without a reference: leave it out."
            )
        if params.get("method", "ridge") != "ridge":
            raise ValueError(
                "fits of method='finetune' aren't kept. Run sg.tl.predict_expression(adata, method='ridge') first."
            )
        source = adata if reference is None else reference
        predicted, library_key = adata.obsm[key], params.get("library_key")
        self.use_rep, self.scores = params["use_rep"], adata.uns[key].get("scores")
        self.expression = read_expression(source, list(predicted.columns), params.get("layer"), params["depth"])
        self._scale, self._points = params["scale"], get_points(adata, self.use_rep)
        self._slides = get_column(adata, "library_key", library_key)
        groups = get_column(source, "group_key", params.get("group_key", library_key))
        inputs = read_features(source, self._scale, self.use_rep, library_key)
        regression = Regression(inputs, self.expression, groups, RidgeRegressor())
        self._fits: list[Predictor] = []
        self._fit_of = np.zeros(adata.n_obs, dtype=int)
        if reference is None:
            for number, (_, rows, fit) in enumerate(regression.folds()):
                self._fits.append(fit)
                self._fit_of[rows] = number
        else:
            self._fits.append(regression.fit())
        again = self.predict(self._points, np.arange(adata.n_obs))
        if not np.allclose(again, predicted.to_numpy(), atol=1e-3):
            raise ValueError(
                f"obsm[{key!r}] isn't what counts and features give now: they have changed, or another reference was "
                "used. Run sg.tl.predict_expression(adata) again."
            )

    def predict(self, features: Array, spots: Ints) -> Floats32:
        """Expression at some points, each predicted as one of the spots is (rows of the slide)."""
        if features.shape[1] != self._points.shape[1]:
            raise ValueError(
                f"the model gives {features.shape[1]} features, obsm[{self.use_rep!r}] has {self._points.shape[1]}. "
                "Pass the model that made them."
            )
        if self._scale == "slide":  # by what was seen at the spots
            inputs, slides = np.empty(features.shape, dtype=np.float32), self._slides[spots]
            for slide in np.unique(slides):
                inputs[slides == slide] = standardize_like(
                    features[slides == slide], self._points[self._slides == slide]
                )
        else:
            inputs = features
        found = np.empty((len(features), len(self.expression.genes)), dtype=np.float32)
        fit_of = self._fit_of[spots]
        for number in np.unique(fit_of):
            found[fit_of == number] = self._fits[number](inputs[fit_of == number])
        return found


@dataclass(frozen=True)
class Grid:
    """Points over the tissue of a slide: their patches, columns and rows, tissue, and nearest spots (rows)."""

    patches: Patches
    place: Ints
    tissue: Floats32
    spots: Ints

    def table(self, adata: AnnData, expression: Floats32, prefix: str) -> AnnData:
        """Return the points as observations, whose names begin with ``prefix``."""
        from anndata import AnnData

        obs = pd.DataFrame({_keys.HISTOLOGY_TISSUE.format(_keys.HISTOLOGY): self.tissue})
        obs[_keys.NEAREST_SPOT] = adata.obs_names[self.spots].to_numpy()
        obs.index = pd.Index([f"{prefix}{y:05d}x{x:05d}" for x, y in self.place])
        xy = self.patches.image.coordinates(self.patches.centers)
        return AnnData(expression, obs=obs, obsm={_keys.SPATIAL: xy})


def _cover_tissue(patches: Patches, rows: Ints, step: float, min_tissue: float) -> Grid:
    """Square grid, ``step`` in the unit of the spots' coordinates, where there is tissue and a spot not far."""
    from scipy.spatial import cKDTree

    xy = patches.image.coordinates(patches.centers)
    low, high = xy.min(axis=0), xy.max(axis=0)
    n = np.floor((high - low) / step * (1 + 1e-9)).astype(int) + 1
    if (n_points := int(n[0]) * int(n[1])) > MAX_POINTS:
        raise ValueError(f"the grid would have {n_points:,} points, more than {MAX_POINTS:,}. Set a larger stride.")
    place = np.stack(np.meshgrid(np.arange(n[0]), np.arange(n[1])), axis=2).reshape(-1, 2)
    points = low + place * step
    over = replace(patches, centers=patches.image.locate(points))
    tissue = tissue_fraction(over, glass_density(patches.image))
    kept = tissue >= min_tissue
    distance, nearest = cKDTree(xy).query(points)
    spacing = np.median(cKDTree(xy).query(xy, k=2)[0][:, 1]) if len(xy) > 1 else np.inf
    kept &= distance <= spacing * (1 + 1e-9)
    return Grid(replace(over, centers=over.centers[kept]), place[kept], tissue[kept], rows[nearest[kept]])


def _embed_params(adata: AnnData, use_rep: str) -> Mapping[str, Any]:
    """What made the features, so that more of them can be made."""
    params = recorded_params(adata, use_rep)
    if params.get("function") != EMBEDDED:
        raise ValueError(
            f"obsm[{use_rep!r}] isn't of sg.tl.histology_embed, so there is no telling what it would be between the "
            "spots. Run sg.tl.histology_embed(adata) and sg.tl.predict_expression(adata)."
        )
    return params
