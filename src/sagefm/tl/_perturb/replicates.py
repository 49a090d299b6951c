"""The paper's comparison of targets with control genes, by set of slides and by replicate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sagefm._types import Floats, Ints

EVERY = "all"


def compare_replicates(effects: Floats, places: Sequence[tuple[Ints, Ints]], libraries: Sequence[str]) -> pd.DataFrame:
    """Compare the targets' effects with those of each replicate of controls, and of all of them pooled.

    Parameters
    ----------
    effects
        E over all spots, and then in each library, shape (1 + libraries, sources, targets).
    places
        For each gene where its targets are, shape (2, targets), and where their controls are, shape
        (2, replicates, targets).
    libraries
        Names of the libraries.

    Returns
    -------
    One row for each ``unit``, ``library`` and ``replicate``: means, standard errors, and Student's two-sample t-test.
    """
    rows = []
    for library, effect in zip([EVERY, *libraries], effects, strict=True):
        parts = [(effect[tuple(own)], effect[tuple(controls)]) for own, controls in places]
        of_genes = [(own.mean(keepdims=True), controls.mean(axis=1, keepdims=True)) for own, controls in parts]
        for unit, found in (("gene", of_genes), ("target", parts)):
            own = np.concatenate([mine for mine, _ in found])
            replicates = np.concatenate([others for _, others in found], axis=1)
            for name, controls in [(EVERY, replicates.ravel()), *enumerate(replicates)]:
                row = {"unit": unit, "library": library, "replicate": str(name)}
                rows.append(row | _two_samples(own, controls))
    return pd.DataFrame(rows)


def _two_samples(own: Floats, controls: Floats) -> dict[str, float]:
    """Means, their standard errors, and whether they differ; NaN where there are fewer than two of either."""
    from scipy import stats

    found: dict[str, float] = {}
    own, controls = own[np.isfinite(own)], controls[np.isfinite(controls)]
    for name, values in (("target", own), ("control", controls)):
        found[f"mean_{name}"] = float(values.mean()) if len(values) else float("nan")
        found[f"sem_{name}"] = float(stats.sem(values)) if len(values) > 1 else float("nan")
    varies = min(len(own), len(controls)) > 1 and (np.ptp(own) > 0 or np.ptp(controls) > 0)
    t, pval = stats.ttest_ind(own, controls) if varies else (np.nan, np.nan)
    return found | {"t": float(t), "pval": float(pval)}
