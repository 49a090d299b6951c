"""Which groups are held out, and that nothing of them leaks into training."""

from __future__ import annotations

import numpy as np

from sagefm import models
from sagefm._settings import logger
from sagefm._types import Bools
from sagefm._utils import shorten
from sagefm.benchmark._protocol.collection import GROUP, LABEL, SAMPLE, Collection
from sagefm.benchmark._protocol.config import Representation


def split(collection: Collection) -> tuple[Bools, list[str]]:
    """Spots that take part in held-out tasks, and the groups to hold out: those with something to predict."""
    obs, config = collection.table.obs, collection.config
    known = obs[LABEL].notna().to_numpy()
    if config.target_key is not None:
        known = known | collection.table.obsm[config.target_key].notna().all(axis=1).to_numpy()
    named = {"train": config.train, "test": config.test}
    rows: dict[str, Bools] = {}
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


def check_model(collection: Collection, representation: Representation, held_out: list[str]) -> None:
    """Refuse a model that was trained on the groups it is to be tried on."""
    if representation.model is None or representation.allow_seen:
        return
    for group in held_out if representation.by_group else [None]:
        loaded = models.load(representation.model.replace("{group}", group or ""))
        training = loaded.card.get("training", {})
        tested = held_out if group is None else [group]
        samples = set(collection.table.obs.loc[collection.table.obs[GROUP].isin(tested), SAMPLE])
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
            logger.warning("%s doesn't say what it was trained on; whether it has seen these can't be told.", loaded)


def imputed_groups(collection: Collection, representation: Representation, held_out: list[str]) -> list[str]:
    """Groups whose genes a model predicts: all, or those that it has a model for."""
    return held_out if representation.by_group else sorted(collection.table.obs[GROUP].unique())
