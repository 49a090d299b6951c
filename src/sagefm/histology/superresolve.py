"""Expression between the spots, from the histology there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sagefm import _keys
from sagefm._anndata import get_anndata
from sagefm._settings import logger
from sagefm._slides import split_libraries
from sagefm._utils import check_key, check_positive
from sagefm.histology.embed import Describe
from sagefm.histology.expression import Fitted, Floats, Ridge, read_target
from sagefm.histology.locate import get_params, open_patches
from sagefm.histology.patches import Patches, glass_density, tissue_fraction
from sagefm.histology.predict import FUNCTION as PREDICTED
from sagefm.histology.predict import Regression, features
from sagefm.models import Encoder
from sagefm.pp._regions.regions import add_spots, find_regions, refuse_taken
from sagefm.pp._regions.units import find_scales
from sagefm.tl._points import get_column, get_points, standardize_like

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

FUNCTION = "tl.superresolve_expression"
MAX_POINTS = 5_000_000


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
    ``reference``. A point at a spot's centre gets the spot's prediction.

    Parameters
    ----------
    adata
        Slides that :func:`predict_expression` predicted from features of :func:`histology_embed`, with their patches.
    stride
        Distance of neighbouring points, in µm.
    reference
        What :func:`predict_expression` learned from, if that was a reference.
    model
        Encoder of the features; by default the one that :func:`histology_embed` recorded.
    microns_per_unit
        µm per unit of the coordinates; by default from Space Ranger's scale factors.
    min_tissue
        Points whose patch is less tissue than this are left out; fat is hardly more than glass. So are points that are
        farther from every spot than spots are from each other.
    expression_key
        Which prediction of spots.
    device
        ``"auto"`` takes cuda, then mps, then cpu.
    batch_size
        Patches at a time.
    key_added
        Name of what is recorded in the new table; of a ``SpatialData``, of the elements that are added.
    table_key
        Table to use where ``adata`` or ``reference`` is a ``SpatialData``.

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
    A patch is wider than the stride (224 pixels of 0.5 µm are 112 µm), so neighbouring points share most of what they
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
    from anndata import AnnData

    stride = check_positive("stride", stride)
    check_key("key_added", key_added)
    sdata = None if isinstance(adata, AnnData) else adata
    adata = get_anndata(adata, table_key)
    if sdata is not None:
        refuse_taken(sdata, *_element_names(key_added)[:2], key_added, FUNCTION)
    of_spots = OfSpots(adata, expression_key, None if reference is None else get_anndata(reference, table_key))
    made_by = _made_by(adata, of_spots.use_rep)
    describe = Describe(made_by["model"] if model is None else model, device)
    cut = get_params(adata, made_by["histology_key"])
    describe.check(cut["size"])
    library_key = cut.get("library_key")
    libraries = split_libraries(adata, library_key)
    labels: list[str | None] = [None] if library_key is None else list(libraries.names)
    if microns_per_unit is None:
        microns_per_unit = cut.get("microns_per_unit")
    scales = find_scales(adata, labels, microns_per_unit)
    parts = []
    slides = open_patches(adata, sdata, made_by["histology_key"])
    for (rows, patches), label, scale in zip(slides, labels, scales, strict=True):
        grid = _over_tissue(patches, rows, stride / scale, min_tissue)
        if not len(grid.patches):
            raise ValueError(
                f"no point of {'the slide' if label is None else label} has min_tissue={min_tissue} of tissue in its "
                "patch. Set a smaller one."
            )
        logger.info("Describing %d points, %g µm apart.", len(grid.patches), stride)
        found = of_spots.predict(describe(grid.patches, batch_size), grid.spots)
        obs = pd.DataFrame({_keys.HISTOLOGY_TISSUE.format(_keys.HISTOLOGY): grid.tissue})
        obs[_keys.NEAREST_SPOT] = adata.obs_names[grid.spots].to_numpy()
        if library_key is not None:
            obs[library_key] = label
        obs.index = pd.Index([f"{'' if label is None else f'{label}_'}{y:05d}x{x:05d}" for x, y in grid.place])
        parts.append((found, obs, patches.image.coordinates(grid.patches.centers)))
    values, obs_of, xy = zip(*parts, strict=True)
    obs = pd.concat(obs_of)
    if library_key is not None:
        obs[library_key] = pd.Categorical(obs[library_key])
    params: dict[str, Any] = {"function": FUNCTION, "stride": stride, "model": describe.name, "min_tissue": min_tissue}
    params |= {"expression_key": expression_key, "microns_per_unit": scales}
    if library_key is not None:
        params["library_key"] = library_key
    recorded = {"params": params}
    var = pd.DataFrame(index=pd.Index(of_spots.target.genes))
    if of_spots.scores is not None:
        recorded["scores"] = of_spots.scores.copy()
        var["reliability"] = of_spots.scores["r"].reindex(var.index)
    dense = AnnData(np.vstack(values), obs=obs, var=var, obsm={_keys.SPATIAL: np.vstack(xy)})
    dense.uns[key_added] = recorded
    if isinstance(images := adata.uns.get(_keys.SPATIAL), Mapping):
        dense.uns[_keys.SPATIAL] = dict(images)
    logger.info("Predicted %d genes at %d points.", dense.n_vars, dense.n_obs)
    if sdata is not None:
        sizes = [len(found) for found in values]
        regions = find_regions(adata, libraries)
        sources = [region for region, size in zip(regions, sizes, strict=True) for _ in range(size)]
        radius = np.repeat(stride / 2 / np.array(scales), sizes)
        dense = add_spots(sdata, dense, np.vstack(xy), radius, sources, *_element_names(key_added))
    return dense


class OfSpots:
    """The fits that predicted the spots of a slide, and which of them predicted which spot."""

    def __init__(self, adata: AnnData, key: str, reference: AnnData | None) -> None:
        record = adata.uns.get(key)
        params = record.get("params", {}) if isinstance(record, Mapping) else {}
        if params.get("function") != PREDICTED or key not in adata.obsm:
            raise KeyError(f"no prediction of spots in adata.uns[{key!r}]. Run sg.tl.predict_expression(adata) first.")
        if params["reference"] != (reference is not None):
            raise ValueError(
                "the spots were predicted from a reference: pass it as reference=..."
                if params["reference"]
                else "the spots were predicted from each other, without a reference: leave it out."
            )
        source = adata if reference is None else reference
        predicted = adata.obsm[key]
        self.use_rep, self.scores = params["use_rep"], record.get("scores")
        self.target = read_target(source, list(predicted.columns), params.get("layer"), params["depth"])
        self._scale, library_key = params["scale"], params.get("library_key")
        self._points, self._slides = get_points(adata, self.use_rep), get_column(adata, "library_key", library_key)
        if params.get("method", "ridge") != "ridge":
            raise ValueError(
                "fits of method='finetune' aren't kept. Run sg.tl.predict_expression(adata, method='ridge') first."
            )
        groups = get_column(source, "group_key", params.get("group_key", library_key))
        inputs = features(source, self._scale, self.use_rep, library_key)
        regression = Regression(inputs, self.target, groups, Ridge())
        self._fits: list[Fitted] = []
        self._fit_of = np.zeros(adata.n_obs, dtype=int)
        if reference is None:
            for number, (rows, fitted) in enumerate(regression.folds()):
                self._fits.append(fitted)
                self._fit_of[rows] = number
        else:
            self._fits.append(regression.fit())
        again = self.predict(self._points, np.arange(adata.n_obs))
        if not np.allclose(again, predicted.to_numpy(), atol=1e-3):
            raise ValueError(
                f"obsm[{key!r}] isn't what counts and features give now: they have changed, or another reference was "
                "used. Run sg.tl.predict_expression(adata) again."
            )

    def predict(self, features: NDArray[Any], spots: NDArray[np.int64]) -> Floats:
        """Expression at some points, each predicted as one of the spots is (rows of the slide)."""
        if features.shape[1] != self._points.shape[1]:
            raise ValueError(
                f"the model gives {features.shape[1]} features, obsm[{self.use_rep!r}] has {self._points.shape[1]}. "
                "Pass the model that made them."
            )
        found = np.empty((len(features), len(self.target.genes)), dtype=np.float32)
        slides = self._slides[spots]
        for slide in np.unique(slides):
            rows = slides == slide
            inputs = features[rows]
            if self._scale == "slide":  # by what was seen at the spots
                inputs = standardize_like(inputs, self._points[self._slides == slide])
            of_fit = self._fit_of[spots[rows]]
            part = np.empty((len(inputs), found.shape[1]), dtype=np.float32)
            for number in np.unique(of_fit):
                part[of_fit == number] = self._fits[number](inputs[of_fit == number])
            found[rows] = part
        return found


@dataclass(frozen=True)
class Grid:
    """Points over the tissue of a slide: their patches, columns and rows, tissue, and nearest spots (rows)."""

    patches: Patches
    place: NDArray[np.int64]
    tissue: NDArray[np.float32]
    spots: NDArray[np.int64]


def _over_tissue(patches: Patches, rows: NDArray[np.int64], step: float, min_tissue: float) -> Grid:
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


def _made_by(adata: AnnData, use_rep: str) -> dict[str, Any]:
    """What made the features, so that more of them can be made."""
    record = adata.uns.get(use_rep)
    params = record.get("params", {}) if isinstance(record, Mapping) else {}
    if params.get("function") != "tl.histology_embed":
        raise ValueError(
            f"obsm[{use_rep!r}] isn't of sg.tl.histology_embed, so there is no telling what it would be between the "
            "spots. Run sg.tl.histology_embed(adata) and sg.tl.predict_expression(adata)."
        )
    return dict(params)


def _element_names(key: str) -> tuple[str, str, str, str]:
    """Of a SpatialData: the table, its circles, and the columns that link them."""
    names = (
        _keys.SUPERRESOLVED_TABLE,
        _keys.SUPERRESOLVED_CIRCLES,
        _keys.SUPERRESOLVED_REGION,
        _keys.SUPERRESOLVED_ID,
    )
    return tuple(name.format(key) for name in names)  # type: ignore[return-value]
