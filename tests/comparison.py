"""What tools give on a slide, and how close that is to something else."""

import anndata as ad
import numpy as np

import sagefm as sg

PAIRS = [("CXCL12", "CXCR4"), ("TGFB1", "TGFBR1_TGFBR2"), ("FN1", "CD44")]
GENES = ["KRT8", "COL1A1", "CD74"]


def assert_close(found, expected, tolerance=1e-5):
    """Equal in the sense of the design: within a share of the largest value."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert (np.isnan(found) == np.isnan(expected)).all()
    assert np.nanmax(np.abs(found - expected)) <= tolerance * np.nanmax(np.abs(expected))


def embed_and_impute(adata, model, *, reliability=False, **kwargs):
    sg.tl.sage_embed(adata, model, device="cpu", **kwargs)
    sg.tl.impute(adata, None, model, reliability=reliability, device="cpu", **kwargs)
    return np.array(adata.obsm["X_sage"]), np.array(adata.layers["sage_imputed"])


def bare(slide):
    """Counts, coordinates and lattice positions, as they come from a reader."""
    return ad.AnnData(slide.X.copy(), obs=slide.obs[["array_row", "array_col"]].copy(), var=slide.var[[]].copy())


def spatial(slide):
    adata = bare(slide)
    adata.obsm["spatial"] = slide.obsm["spatial"].copy()
    return adata


def run_tools(adata, model, *, reliability=False, **kwargs):
    """What embed, impute and perturb write, by spot."""
    more = {"device": "cpu", **kwargs}
    sg.tl.sage_embed(adata, model, **more)
    sg.tl.impute(adata, model=model, n_folds=3, reliability=reliability, **more)
    sg.tl.perturb_lr(adata, PAIRS, model, n_controls=5, store_spots=True, **more)
    table = adata if isinstance(adata, ad.AnnData) else adata.tables["table"]
    return table.obsm["X_sage"], table.layers["sage_imputed"], table.obsm["perturb_lr"]
