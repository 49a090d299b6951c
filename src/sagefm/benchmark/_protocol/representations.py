"""Representations of a collection's spots, as the settings describe them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from sagefm import _keys, models, tl
from sagefm._types import Array, Floats32
from sagefm._utils import progress
from sagefm.benchmark._protocol.collection import GROUP, SAMPLE, Collection, quiet
from sagefm.benchmark._protocol.config import Representation
from sagefm.pp._normalize import normalize_total
from sagefm.tl._points import get_points

KEY = "sage_representation"


def key_of(representation: Representation, group: str = "{group}") -> str:
    """Key of ``obsm`` that held-out tasks read: one for each group, where there is a model for each."""
    return f"{KEY} {group}" if representation.by_group else KEY


def compute(collection: Collection, representation: Representation, held_out: list[str]) -> None:
    """Put a representation into ``obsm`` of the collection's table, alone.

    One of several models lies there by held-out group, and once with each spot's own.
    """
    table = collection.table
    for key in [key for key in table.obsm if key.startswith(KEY)]:
        del table.obsm[key]
    if representation.model is not None and representation.by_group:
        own: Any = None
        for group in held_out:
            found = _embed(collection, representation.model.replace("{group}", group))
            table.obsm[key_of(representation, group)] = found
            own = np.full_like(found, np.nan) if own is None else own
            rows = (table.obs[GROUP] == group).to_numpy()
            own[rows] = found[rows]
        table.obsm[KEY] = own
    elif representation.model is not None:
        table.obsm[KEY] = _embed(collection, representation.model)
    elif representation.obsm is not None:
        table.obsm[KEY] = _read(collection, representation.obsm)
    elif representation.embedding is not None:
        table.obsm[KEY] = _baseline(collection, representation.embedding)
    else:
        table.obsm[KEY] = _expression(collection, representation)


def _embed(collection: Collection, model: str) -> Floats32:
    loaded, parts, config = models.load(model), [], collection.config
    for adata in progress(collection.sections.values(), f"Embedding with {loaded.name}", unit="section"):
        with quiet():
            tl.sage_embed(adata, loaded, layer=config.layer, device=config.device)
        parts.append(adata.obsm.pop(_keys.EMBEDDING))
        adata.uns.pop(_keys.EMBEDDING)
    return np.concatenate(parts)


def _read(collection: Collection, key: str) -> Array:
    """What the sections bring."""
    parts = []
    for name, adata in collection.sections.items():
        if key not in adata.obsm:
            raise KeyError(f"{key!r} not in obsm of section {name!r}, which has {sorted(adata.obsm)}.")
        parts.append(get_points(adata, key))
    if len({part.shape[1] for part in parts}) > 1:
        raise ValueError(f"obsm[{key!r}] has different widths: {sorted({part.shape[1] for part in parts})}.")
    return np.concatenate(parts)


def _baseline(collection: Collection, embedding: str) -> Array:
    """A baseline embedding, fitted to all spots together."""
    options: dict[str, Any] = {"rng": collection.config.seed, "key_added": "sage_scratch", "copy": True}
    if embedding == "nichepca":
        found = tl.nichepca_embed(collection.table, **options)
    else:
        library_key = SAMPLE if embedding == "mofa_by_slide" else None
        found = tl.mofa_embed(collection.table, library_key=library_key, **options)
    return np.asarray(found.obsm["sage_scratch"])  # type: ignore[union-attr]


def _expression(collection: Collection, representation: Representation) -> Floats32:
    """Counts or their logarithms, of all spots together."""
    import scanpy as sc
    from anndata import AnnData

    table = collection.table
    slide = AnnData(table.X.astype(np.float32))
    if representation.expression == "normalized":
        normalize_total(slide)
    if representation.expression != "raw":
        sc.pp.log1p(slide)
    if representation.neighbors:
        around = table.obsp[_keys.connectivities(_keys.GRAPH)] + sparse.identity(slide.n_obs, np.float32, "csr")
        slide.X = sparse.csr_matrix((around @ slide.X).multiply(1 / around.sum(axis=1)), dtype=np.float32)
    if representation.expression == "scaled":
        sc.pp.scale(slide)
    if representation.pca is None:
        return np.asarray(slide.X.toarray() if sparse.issparse(slide.X) else slide.X, dtype=np.float32)
    if min(slide.shape) <= representation.pca:
        raise ValueError(f"{slide.n_obs} spots are too few for pca = {representation.pca} of {representation.name!r}.")
    sc.pp.pca(slide, n_comps=representation.pca, random_state=collection.config.seed)
    return np.asarray(slide.obsm["X_pca"], dtype=np.float32)
