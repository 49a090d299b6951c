"""Sections side by side, their representations, and what would leak between them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from sagefm import _keys, models, pp, tl
from sagefm._settings import logger, settings
from sagefm._utils import progress, shorten
from sagefm.benchmark._protocol.config import Config, Representation
from sagefm.pp._counts import Counts
from sagefm.pp._normalize import normalize_total
from sagefm.tl._labels.composition import get_targets
from sagefm.tl._labels.labels import get_labels
from sagefm.tl._points import get_column, get_points

if TYPE_CHECKING:
    from anndata import AnnData

KEY = "sage_representation"
SAMPLE, GROUP, TISSUE, LABEL = "sample", "group", "tissue", "label"
BATCH_SIZE = 2_048
MIN_GENES = 500


class Collection:
    """Sections with their groups, tissues and labels, and the genes that all of them measured.

    Attributes
    ----------
    sections
        Each section as read, with its graph.
    table
        All spots side by side, with the genes in common; ``obs`` holds sample, group, tissue and label, ``obsm``
        what was asked for last.
    """

    def __init__(self, config: Config) -> None:
        import anndata as ad

        self.config = config
        self.sections: dict[str, AnnData] = {}
        self._model: tuple[str, models.Model] | None = None
        for file in progress(config.sections, "Reading", unit="section"):
            path = Path(file)
            adata = ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)
            self.sections[path.stem] = self._describe(adata, path.stem)
        if config.label_key is not None and not any(adata.obs[LABEL].notna().any() for adata in self.sections.values()):
            raise KeyError(f"label_key={config.label_key!r}: no spot of any section has such a label in obs.")
        self._refuse_twins()
        genes = sorted(set.intersection(*(set(adata.var_names) for adata in self.sections.values())))
        if len(genes) < MIN_GENES:
            sizes = {name: adata.n_vars for name, adata in self.sections.items()}
            least = min(sizes, key=lambda name: sizes[name])
            raise ValueError(
                f"the sections have {len(genes)} genes in common, fewer than {MIN_GENES}; {least!r} has "
                f"{sizes[least]}. Do all name them by symbols? Leave sections with few genes out."
            )
        slim = []
        for name, adata in self.sections.items():
            columns = np.arange(adata.n_vars)
            counts = Counts(adata, columns, config.layer).log1p(columns, BATCH_SIZE).expm1()
            counts.data = np.rint(counts.data)
            part = ad.AnnData(
                counts,
                obs=adata.obs.copy(),
                var=pd.DataFrame(index=adata.var_names),
            )
            part.obs_names = [f"{name}:{spot}" for spot in part.obs_names]
            key = _keys.connectivities(_keys.GRAPH)
            part.obsp[key] = adata.obsp[key]
            if config.target_key is not None and config.target_key in adata.obsm:
                part.obsm[config.target_key] = get_targets(adata, config.target_key).set_axis(part.obs_names)
            slim.append(part[:, genes].copy())
        self.table: AnnData = ad.concat(slim, pairwise=True, join="inner")
        if config.target_key is not None:
            self._gather_targets(slim)
        logger.info(
            "%d spots of %d sections, %d groups, %d genes in common.",
            *(self.table.n_obs, len(self.sections), self.table.obs[GROUP].nunique(), len(genes)),
        )

    @property
    def groups(self) -> list[str]:
        """Names of the groups."""
        return sorted(self.table.obs[GROUP].unique())

    def _describe(self, adata: AnnData, name: str) -> AnnData:
        config = self.config
        for names, mend in (
            (adata.var_names, adata.var_names_make_unique),
            (adata.obs_names, adata.obs_names_make_unique),
        ):
            if not names.is_unique:
                mend()
        library = get_column(adata, "library_key", config.library_key, single=name)
        obs = adata.obs
        described = pd.DataFrame(index=obs.index)
        described[SAMPLE] = library if config.library_key is None else [f"{name}:{part}" for part in library]
        needs_groups = {"annotation", "composition"} & set(config.tasks)
        if needs_groups or config.group_key in obs:
            described[GROUP] = get_column(adata, "group_key", config.group_key)
        else:
            logger.warning("%s has no %r in obs: it counts as a group of its own.", name, config.group_key)
            described[GROUP] = described[SAMPLE]
        tissue_key = config.tissue_key if config.tissue_key in obs else None
        if tissue_key != config.tissue_key:
            logger.info("%s has no %r in obs: its tissue is unknown.", name, config.tissue_key)
        described[TISSUE] = get_column(adata, "tissue_key", tissue_key, single="unknown")
        at = adata.obsm.get(_keys.SPATIAL)
        described[["x", "y"]] = np.nan if at is None else np.asarray(at, dtype=float)[:, :2]
        has_label = config.label_key is not None and config.label_key in obs
        described[LABEL] = None
        if has_label:
            labels = get_labels(adata, str(config.label_key), config.merge or None, strict=False)
            # No file takes a column named with a slash.
            described[LABEL] = labels.map(lambda label: label if label is None else label.replace("/", "|"))
        for sample, groups in described.groupby(SAMPLE)[GROUP]:
            if groups.nunique() > 1:
                raise ValueError(
                    f"section {sample!r} has {groups.nunique()} values in obs[{config.group_key!r}]; neighbouring "
                    "spots would be split. Set library_key, or mend the column."
                )
        if _keys.connectivities(_keys.GRAPH) not in adata.obsp:
            with _quiet():
                pp.neighborhood_graph(adata, library_key=config.library_key)
        adata.obs = described
        return adata

    def _refuse_twins(self) -> None:
        """The same counts under two donors would be on both sides of a split."""
        seen: dict[str, str] = {}
        for name, adata in self.sections.items():
            matrix = adata.X if self.config.layer is None else adata.layers[self.config.layer]
            counts = sparse.csr_matrix(matrix, dtype=np.float64)
            # The same in any order of spots and genes and however it is stored.
            spots = np.stack([counts.sum(axis=1).A1, counts.multiply(counts).sum(axis=1).A1, np.diff(counts.indptr)])
            spots = spots[:, np.lexsort(spots)]
            digest = hashlib.sha256(spots.tobytes()).hexdigest()
            other = seen.setdefault(digest, name)
            groups = {frozenset(self.sections[part].obs[GROUP]) for part in (name, other)}
            if other != name and len(groups) > 1:
                raise ValueError(
                    f"this split leaks: {other!r} and {name!r} hold the same counts under different values of "
                    f"obs[{self.config.group_key!r}]. Leave one out."
                )

    def _gather_targets(self, parts: list[AnnData]) -> None:
        """Likelihoods of all sections; missing where a section has none."""
        key = str(self.config.target_key)
        known = [part.obsm[key] for part in parts if key in part.obsm]
        if not known:
            raise KeyError(f"target_key={key!r} is in obsm of no section.")
        classes = list(known[0].columns)
        if any(list(table.columns) != classes for table in known):
            raise ValueError(f"obsm[{key!r}] has other classes in some sections.")
        empty = [
            part.obsm[key] if key in part.obsm else pd.DataFrame(np.nan, index=part.obs_names, columns=classes)
            for part in parts
        ]
        self.table.obsm[key] = pd.concat([table.set_axis(classes, axis=1) for table in empty]).set_axis(
            self.table.obs_names, axis=0
        )

    def keep(self, rows: NDArray[np.bool_]) -> AnnData:
        """Some of the spots, with what ``obsm`` holds and without the counts' copies."""
        return self.table[rows].copy()

    def split(self) -> tuple[NDArray[np.bool_], list[str]]:
        """Spots that take part in held-out tasks, and the groups to hold out: those with something to predict."""
        obs, config = self.table.obs, self.config
        known = obs[LABEL].notna().to_numpy()
        if config.target_key is not None:
            known = known | self.table.obsm[config.target_key].notna().all(axis=1).to_numpy()
        named = {"train": config.train, "test": config.test}
        rows: dict[str, NDArray[np.bool_]] = {}
        for part, names in named.items():
            all_names = set(obs[SAMPLE]) | set(obs[GROUP])
            if unknown := [name for name in names if name not in all_names]:
                raise ValueError(
                    f"{part} names {unknown[0]!r}, which is no section and no group; there are "
                    f"{shorten(sorted(all_names), 40)}."
                )
            rows[part] = (obs[SAMPLE].isin(names) | obs[GROUP].isin(names)).to_numpy()
        if not config.test:
            chosen = rows["train"] if config.train else np.ones(len(obs), dtype=bool)
            return chosen, sorted(obs[GROUP][chosen & known].unique())
        if not config.train:
            # Other sections of a tested donor are no training data.
            rows["train"] = ~obs[GROUP].isin(obs[GROUP][rows["test"]]).to_numpy()
        both = set(obs[GROUP][rows["train"]]) & set(obs[GROUP][rows["test"]])
        if both:
            raise ValueError(
                f"this split leaks: {shorten(sorted(both))} of obs[{config.group_key!r}] would be trained and tested "
                "on. Sections of one group belong to one side."
            )
        if not (known & rows["test"]).any():
            raise ValueError(f"test names {shorten(config.test)}, where no spot has a label.")
        return rows["train"] | rows["test"], sorted(obs[GROUP][rows["test"] & known].unique())

    def check_model(self, representation: Representation, held_out: list[str]) -> None:
        """Refuse a model that was trained on the groups it is to be tried on."""
        if representation.model is None or representation.allow_seen:
            return
        for group in held_out if representation.by_group else [None]:
            loaded = self._load(representation.model.replace("{group}", group or ""))
            training = loaded.card.get("training", {})
            tested = held_out if group is None else [group]
            samples = set(self.table.obs.loc[self.table.obs[GROUP].isin(tested), SAMPLE])
            # As a file, a slide of it, and as a corpus names the slides of a file.
            samples |= {sample.partition(":")[0] for sample in samples} | {s.replace(":", "_") for s in samples}
            groups = set(training.get("groups", ()))
            if training.get("recipe", {}).get("patience") is not None:  # they chose when to stop
                groups |= set(loaded.card.get("validation", {}).get("groups", ()))
            seen = (groups & set(tested)) | (set(training.get("sections", ())) & samples)
            if seen:
                raise ValueError(
                    f"this split leaks: the model of {representation.name!r} ({loaded.name}) was trained on "
                    f"{shorten(sorted(seen))}, which it would be tried on. Give models trained without each group as "
                    'model = "folder/{group}.safetensors", or set allow_seen = true, which the report says.'
                )
            if not training.get("groups") and not training.get("sections"):
                logger.warning(
                    "%s doesn't say what it was trained on; whether it has seen these can't be told.", loaded
                )

    def compute(self, representation: Representation, held_out: list[str]) -> None:
        """Put a representation into ``table.obsm``, alone.

        One of several models lies there by held-out group, and once with each spot's own.
        """
        for key in [key for key in self.table.obsm if key.startswith(KEY)]:
            del self.table.obsm[key]
        if representation.model is not None and representation.by_group:
            own = None
            for group in held_out:
                found = self._embed(representation.model.replace("{group}", group))
                self.table.obsm[key_of(representation, group)] = found
                own = np.full_like(found, np.nan) if own is None else own
                rows = (self.table.obs[GROUP] == group).to_numpy()
                own[rows] = found[rows]
            self.table.obsm[KEY] = own
        elif representation.model is not None:
            self.table.obsm[KEY] = self._embed(representation.model)
        elif representation.obsm is not None:
            self.table.obsm[KEY] = self._own(representation.obsm)
        else:
            self.table.obsm[KEY] = self._plain(representation)

    def _load(self, model: str) -> models.Model:
        if self._model is None or self._model[0] != model:
            self._model = model, models.load(model)
        return self._model[1]

    def _embed(self, model: str) -> NDArray[np.float32]:
        loaded, parts = self._load(model), []
        for adata in progress(self.sections.values(), f"Embedding with {loaded.name}", unit="section"):
            with _quiet():
                tl.sage_embed(adata, loaded, layer=self.config.layer, device=self.config.device)
            parts.append(adata.obsm.pop(_keys.EMBEDDING))
            adata.uns.pop(_keys.EMBEDDING)
        return np.concatenate(parts)

    def _own(self, key: str) -> NDArray[Any]:
        parts = []
        for name, adata in self.sections.items():
            if key not in adata.obsm:
                raise KeyError(f"{key!r} not in obsm of section {name!r}, which has {sorted(adata.obsm)}.")
            parts.append(get_points(adata, key))
        if len({part.shape[1] for part in parts}) > 1:
            raise ValueError(f"obsm[{key!r}] has different widths: {sorted({part.shape[1] for part in parts})}.")
        return np.concatenate(parts)

    def _plain(self, representation: Representation) -> NDArray[np.float32]:
        """Expression, or a baseline embedding; of all spots together, none of it reads labels."""
        import scanpy as sc
        from anndata import AnnData

        seed = self.config.seed
        if representation.embedding in ("mofa", "mofa_by_slide"):
            library_key = SAMPLE if representation.embedding == "mofa_by_slide" else None
            found = tl.mofa_embed(self.table, library_key=library_key, seed=seed, key_added="sage_scratch", copy=True)
            return np.asarray(found.obsm["sage_scratch"])  # type: ignore[union-attr]
        if representation.embedding == "nichepca":
            found = tl.nichepca_embed(self.table, seed=seed, key_added="sage_scratch", copy=True)
            return np.asarray(found.obsm["sage_scratch"])  # type: ignore[union-attr]
        slide = AnnData(self.table.X.astype(np.float32))
        if representation.expression == "normalized":
            normalize_total(slide)
        if representation.expression != "raw":
            sc.pp.log1p(slide)
        if representation.neighbors:
            graph = self.table.obsp[_keys.connectivities(_keys.GRAPH)]
            around = graph + sparse.identity(slide.n_obs, format="csr", dtype=np.float32)
            slide.X = sparse.csr_matrix((around @ slide.X).multiply(1 / around.sum(axis=1)), dtype=np.float32)
        if representation.expression == "scaled":
            sc.pp.scale(slide)
        if representation.pca is None:
            return np.asarray(slide.X.toarray() if sparse.issparse(slide.X) else slide.X, dtype=np.float32)
        if min(slide.shape) <= representation.pca:
            raise ValueError(
                f"{slide.n_obs} spots are too few for pca = {representation.pca} of {representation.name!r}."
            )
        sc.pp.pca(slide, n_comps=representation.pca, random_state=seed)
        return np.asarray(slide.obsm["X_pca"], dtype=np.float32)


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings only: what a tool says of each of many sections is too much."""
    verbosity = settings.verbosity
    logger.setLevel(max(logger.level, logging.WARNING))
    try:
        yield
    finally:
        settings.verbosity = verbosity


def key_of(representation: Representation, group: str = "{group}") -> str:
    """Key of ``obsm`` that held-out tasks read: one for each group, where there is a model for each."""
    return f"{KEY} {group}" if representation.by_group else KEY
