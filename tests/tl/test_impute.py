"""Imputation: what is masked, which genes are given."""

import numpy as np
import pytest
from comparison import assert_close
from scipy import sparse

import sagefm as sg
from sagefm.models._vocabulary import hest1k
from sagefm.tl._impute.request import gene_folds


@pytest.mark.slow
def test_no_value_sees_itself(slide, model):
    """Change a fold's counts at one spot: its predictions of that fold there stay as they are."""
    sg.tl.impute(slide, None, model, device="cpu")
    before = slide.layers["sage_imputed"].copy()
    spot = 57
    index = hest1k().find_symbols(slide.var_names)
    fold = gene_folds(len(hest1k()), 4)[index]
    counts = slide.X.toarray()
    counts[spot, fold == 2] += np.random.default_rng(0).integers(1, 9, (fold == 2).sum())
    slide.X = sparse.csr_matrix(counts)
    sg.tl.impute(slide, None, model, device="cpu")
    after = slide.layers["sage_imputed"]
    # Not to the bit: which genes go through the sparse product depends on all counts.
    assert_close(after[spot, fold == 2], before[spot, fold == 2], tolerance=1e-6)
    assert (after[spot, fold == 1] != before[spot, fold == 1]).any()
    neighbor = slide.obsp["sage_connectivities"][:, spot].nonzero()[0][0]
    assert (after[neighbor, fold == 2] != before[neighbor, fold == 2]).any()  # neighbors may read it

    # Masked everywhere, nobody does.
    sg.tl.impute(slide, None, model, mask="everywhere", device="cpu")
    everywhere = slide.layers["sage_imputed"][:, fold == 2].copy()
    counts[:, fold == 2] = 0
    slide.X = sparse.csr_matrix(counts)
    sg.tl.impute(slide, None, model, mask="everywhere", device="cpu")
    assert_close(slide.layers["sage_imputed"][:, fold == 2], everywhere, tolerance=1e-6)


def test_asking_for_some_genes_gives_the_values_of_all(slide, model, expected):
    genes = slide.var_names[[5, 3000, 7, 9000]].tolist()
    sg.tl.impute(slide, genes, model, device="cpu")
    layer = slide.layers["sage_imputed"]
    columns = slide.var_names.get_indexer(genes)
    assert_close(layer[:, columns], expected[1][:, columns])
    assert np.isnan(np.delete(layer, columns, axis=1)).all()
    assert "sage_imputed" not in slide.obsm


def test_absent_genes_by_any_name(slide, tiny):
    sg.pp.align_genes(slide)
    vocabulary = hest1k()
    missing = vocabulary.find_symbols(slide.uns["sage_genes"]["missing"])
    renamed = next(gene for gene in missing[2:] if vocabulary.other_symbols[gene])
    names = [
        vocabulary.symbols[missing[0]],
        vocabulary.ensembl_ids[missing[1]] + ".3",
        vocabulary.other_symbols[renamed][0],
        vocabulary.symbols[missing[0]],  # twice
    ]
    sg.tl.impute(slide, names, tiny, device="cpu")
    table = slide.obsm["sage_imputed"]
    assert table.columns.tolist() == [vocabulary.symbols[gene] for gene in (missing[0], missing[1], renamed)]
    assert "sage_imputed" not in slide.layers


@pytest.mark.parametrize(
    ("genes", "kwargs", "error", "message"),
    [
        ("FOO", {}, KeyError, "'FOO'"),
        ("col1a1", {}, KeyError, "Did you mean 'COL1A1'"),
        ([], {}, ValueError, "genes is empty"),
        (None, {"mask": "neighbors"}, ValueError, "'neighbors'"),
        (None, {"n_folds": 1}, ValueError, "n_folds=1"),
        (None, {"n_folds": 2.5}, TypeError, "n_folds=2.5"),
        (5, {}, TypeError, "got 5"),
        ([["KRT8"]], {}, TypeError, r"got \['KRT8'\]"),
        ("KRT8", {"key_added": "a/b"}, ValueError, "'a/b'"),
        ("KRT8", {"key_added": None}, TypeError, "key_added"),
        ("KRT8", {"key_added": "spatial"}, ValueError, r"adata.obsm\['spatial'\] exists"),
    ],
)
def test_bad_requests_to_impute(slide, tiny, genes, kwargs, error, message):
    with pytest.raises(error, match=message):
        sg.tl.impute(slide, genes, tiny, **kwargs)
    assert "sage_imputed" not in slide.layers


def test_unknown_genes_are_skipped_if_asked(slide, tiny, log):
    sg.tl.impute(slide, ["COL1A", "KRT8", "nonsense"], tiny, missing="skip", reliability=False)
    columns = np.isfinite(slide.layers["sage_imputed"]).all(axis=0)
    assert slide.var_names[columns].tolist() == ["KRT8"]
    assert "doesn't know 'COL1A', 'nonsense'" in log.text
    assert "Did you mean" in log.text
    assert "'COL1A1'" in log.text
    with pytest.raises(KeyError, match=rf"{tiny.name} doesn't know 'nonsense'; it has 14,558 genes"):
        sg.tl.impute(slide, "nonsense", tiny, missing="skip")
    with pytest.raises(ValueError, match="missing"):
        sg.tl.impute(slide, "KRT8", tiny, missing="ignore")


def test_a_model_knows_its_genes(tiny):
    assert "KRT8" in tiny
    assert "ENSG00000170421" in tiny  # KRT8
    assert "HLA-A" not in tiny
    assert 5 not in tiny
    assert tiny.genes == list(tiny.vocabulary.symbols)
    assert tiny.vocabulary.find(["225", "3635"]).tolist() == [-1, -1]  # aliases of EGR1 and PDE12 once


def test_folds():
    fold = gene_folds(14_558, 4)
    assert sorted(np.bincount(fold)) == [3639, 3639, 3640, 3640]
    np.testing.assert_array_equal(fold, gene_folds(14_558, 4))


def test_mini_predicts_what_it_does_not_see(section):
    """Quality is for the evaluation to tell; this holds the shipped weights to being weights."""
    adata = section("her2st_G2")
    sg.pp.neighborhood_graph(adata)
    sg.tl.impute(adata, None, "sagefm-mini")
    known = adata.var["sage_gene"].to_numpy() >= 0
    truth = np.log1p(adata.X.toarray()[:, known])
    predicted = adata.layers["sage_imputed"][:, known]
    expressed = (truth > 0).mean(axis=0) > 0.3
    r = [np.corrcoef(t, p)[0, 1] for t, p in zip(truth.T[expressed], predicted.T[expressed], strict=True) if p.std()]
    assert np.mean(r) > 0.15
