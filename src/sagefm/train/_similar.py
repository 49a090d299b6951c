"""Similar spots in training: found once for each section and fold, when the corpus is prepared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sagefm._types import Bools, Floats32, Ints
from sagefm.models._baselines import relative_depth
from sagefm.pp._diffusion import MIN_SPOTS, Diffusion, similar_components, with_unit_rows

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from sagefm.train._corpus import Corpus

N_FOLDS = 4  # as many as sg.tl.impute has by default
STEP = "similar_{}"


def draw_folds(n_genes: int, digest: str) -> Ints:
    """Fold of each gene: another partition in every section, so that any two genes are parted in some."""
    return np.random.default_rng(int(digest[:16], 16)).permutation(n_genes) % N_FOLDS


def find_steps(log_counts: csr_matrix, digest: str) -> dict[str, csr_matrix]:
    """For each fold, the step of the diffusion over spots alike by the genes outside it; none for too few spots."""
    if log_counts.shape[0] < MIN_SPOTS:
        return {}
    fold_of = draw_folds(log_counts.shape[1], digest)
    shown = [log_counts[:, fold_of != fold] for fold in range(N_FOLDS)]
    return {STEP.format(i): Diffusion.over_similar(similar_components(part)).step for i, part in enumerate(shown)}


def choose_fold(corpus: Corpus, section: str, share: float, seed: tuple[int, ...]) -> int | None:
    """Fold that is masked on a section; None, for random masks, on ``1 - share`` of them and without similar spots."""
    rng = np.random.default_rng(seed)
    chosen, fold = rng.random() < share, int(rng.integers(N_FOLDS))
    return fold if chosen and corpus.sections.loc[section, "similar"] else None


def mean_of_similar(
    corpus: Corpus, section: str, rows: slice, fold: int, log_counts: Floats32
) -> tuple[Bools, Floats32]:
    """Which genes are of a fold, and their means over the similar spots among some rows, at the depth of the spot.

    Parameters
    ----------
    corpus, section, rows, fold
        Where to look.
    log_counts
        Of these rows, shape (spots, genes).
    """
    import zarr
    from anndata.io import read_elem

    step: Any = read_elem(zarr.open_group(corpus.path, mode="r")[f"section/{section}/obsp/{STEP.format(fold)}"])
    if len(log_counts) < step.shape[0]:  # a part of a section that is too large to be read at once
        step = with_unit_rows(step[rows][:, rows])
    hidden = draw_folds(log_counts.shape[1], corpus.sections.loc[section, "digest"]) == fold
    diffusion, total = Diffusion(step), log_counts[:, ~hidden].sum(axis=1, keepdims=True, dtype=float)
    return hidden, relative_depth(total, diffusion.mean(total)) * diffusion.mean(log_counts[:, hidden])
