"""Two groups of slides, and what of a perturbation holds in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sagefm import _keys
from sagefm._anndata import get_anndata, get_result
from sagefm._docs import fill_docstring
from sagefm._settings import logger
from sagefm.tl._perturb.plan import OK

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData


@fill_docstring
def perturbation_overlap(
    adata: AnnData | SpatialData,
    groups: Sequence[str] | None = None,
    *,
    alpha: float = 0.05,
    key: str = _keys.PERTURB_LR,
    table_key: str = "table",
    copy: bool = False,
) -> AnnData | None:
    """Compare a perturbation between two groups of spots, as the paper does validation and test slides.

    Parameters
    ----------
    adata
        Spots after :func:`perturb_lr` or :func:`perturb_targets` with a ``library_key``, or the result of
        :func:`perturb_sections`.
    groups
        The two libraries to compare, such as ``("validation", "test")``; by default the two that there are.
    alpha
        Level at which a reference correlation counts as significant.
    {key}
    {table_key}
    {copy}

    Returns
    -------
    ``None``, or the copy. Writes

    ``uns[key]["overlap"]["pairs"]``
        By pair: ``reference_r``, ``reference_pval`` and ``effect`` of each group (suffix ``_1`` and ``_2``),
        ``agrees`` (the reference is significant in both groups, with one sign), ``reproduced_1`` and
        ``reproduced_2`` (the effect has the sign of the reference), ``reproduced`` (in both groups).
    ``uns[key]["overlap"]["counts"]``
        ``n_pairs`` that could be run in both groups, ``significant_1``, ``significant_2`` and ``significant_both`` in
        the reference, ``agrees``; of these ``reproduced_1``, ``reproduced_2``, ``reproduced``; and ``effect_r``,
        ``effect_pval``: Pearson correlation of the effects of all pairs between the groups (NaN where they
        don't vary); and ``gene_effect_r``, ``gene_effect_pval``, that of the mean effects of each input gene.
    ``uns[key]["overlap"]["signs"]``
        By sign (``positive``, ``negative``): number of pairs in the ``reference`` (which ``agrees``), in the ``model``
        (the effect has this sign in both groups), and in ``both``.
    ``uns[key]["overlap"]["genes"]``
        By input gene: mean ``effect_1`` and ``effect_2`` over its ``n_targets``.
    ``uns[key]["overlap"]["params"]``
        ``groups``, ``alpha``.

    Raises
    ------
    KeyError
        If there are no results by library, or no such group.
    ValueError
        If there are not two groups.

    Notes
    -----
    SAGE-FM (arXiv 2601.15504), Figure 5a, b and e.

    Examples
    --------
    >>> import sagefm as sg
    >>> adata = sg.datasets.simulated_visium(n_rows=12, n_cols=12)
    >>> adata.obs["half"] = ["left" if x < 600 else "right" for x in adata.obsm["spatial"][:, 0]]
    >>> sg.pp.neighborhood_graph(adata, library_key="half")
    >>> sg.tl.perturb_lr(adata, [("CXCL12", "CXCR4")], "sagefm-mini", library_key="half", n_controls=0)
    >>> sg.tl.perturbation_overlap(adata)
    >>> adata.uns["perturb_lr"]["overlap"]["counts"]["n_pairs"]
    1
    """
    import pandas as pd
    from scipy import stats

    adata = get_anndata(adata, table_key, copy=copy)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha!r} has to lie between 0 and 1.")
    run = "sg.tl.perturb_lr(adata, ..., library_key=...) or sg.tl.perturb_targets(adata, ..., library_key=...)"
    columns = ["library", "pair", "status", "reference_r", "reference_pval", "effect"]
    libraries: pd.DataFrame = get_result(adata, (key, "libraries"), pd.DataFrame, columns, run)
    known = list(dict.fromkeys(libraries["library"]))
    names = known if groups is None else list(groups)
    if isinstance(groups, str) or len(names) != 2 or len(set(names)) != 2:
        raise ValueError(f"groups has to name two libraries of {known}, got {groups!r}.")
    if unknown := [name for name in names if name not in known]:
        raise KeyError(f"no library {unknown[0]!r} in adata.uns[{key!r}]; it has {known}.")
    rows = libraries[libraries["status"] == OK].drop_duplicates(["library", "pair"])
    one, two = (rows[rows["library"] == name].set_index("pair") for name in names)
    shared = one.index[one.index.isin(two.index)]  # a section may lack genes that others have
    one, two = one.loc[shared], two.loc[shared]
    pairs = pd.DataFrame(index=pd.Index(shared.to_numpy()))
    significant = []
    for number, part in ((1, one), (2, two)):
        for name in ("reference_r", "reference_pval", "effect"):
            pairs[f"{name}_{number}"] = part[name]
        significant.append(part["reference_pval"] < alpha)
    agrees = significant[0] & significant[1] & (np.sign(one["reference_r"]) == np.sign(two["reference_r"]))
    pairs["agrees"] = agrees
    for number, part in ((1, one), (2, two)):
        pairs[f"reproduced_{number}"] = agrees & (np.sign(part["effect"]) == np.sign(part["reference_r"]))
    pairs["reproduced"] = pairs["reproduced_1"] & pairs["reproduced_2"]
    counts: dict[str, float] = {
        "n_pairs": len(pairs),
        "significant_1": int(significant[0].sum()),
        "significant_2": int(significant[1].sum()),
        "significant_both": int((significant[0] & significant[1]).sum()),
    }
    counts |= {name: int(pairs[name].sum()) for name in ("agrees", "reproduced_1", "reproduced_2", "reproduced")}
    by_gene = pairs.groupby(pairs.index.str.split("|").str[0], sort=False)[["effect_1", "effect_2"]]
    genes = by_gene.mean().assign(n_targets=by_gene.size())
    for name, table in (("effect", pairs), ("gene_effect", genes)):
        effects = table[["effect_1", "effect_2"]].to_numpy(dtype=float)
        varies = len(effects) > 2 and (np.ptp(effects, axis=0) > 0).all()
        counts[f"{name}_r"], counts[f"{name}_pval"] = (
            map(float, stats.pearsonr(*effects.T)) if varies else (np.nan, np.nan)
        )
    adata.uns[key] = {**adata.uns[key]}  # a copy shares nested mappings
    adata.uns[key]["overlap"] = {
        "pairs": pairs,
        "counts": counts,
        "signs": _by_sign(pairs),
        "genes": genes,
        "params": {"groups": names, "alpha": float(alpha)},
    }
    logger.info(
        "%d of %d pairs are significant in both groups with one sign; the model reproduces %d of them in both. Wrote "
        "uns['%s']['overlap'].",
        counts["agrees"],
        counts["n_pairs"],
        counts["reproduced"],
        key,
    )
    return adata if copy else None


def _by_sign(pairs: pd.DataFrame) -> pd.DataFrame:
    """Number of pairs that have each sign in the reference, by the model in both groups, and in both of these."""
    import pandas as pd

    rows = {}
    for name, sign in (("positive", 1), ("negative", -1)):
        reference = pairs["agrees"] & (np.sign(pairs["reference_r_1"]) == sign)
        model = (np.sign(pairs["effect_1"]) == sign) & (np.sign(pairs["effect_2"]) == sign)
        rows[name] = {
            "reference": int(reference.sum()),
            "model": int(model.sum()),
            "both": int((reference & model).sum()),
        }
    return pd.DataFrame.from_dict(rows, "index")
