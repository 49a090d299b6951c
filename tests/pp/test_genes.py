import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

import sagefm as sg
from sagefm.models._vocabulary import Vocabulary, hest1k
from sagefm.pp._genes import get_alignment, match_genes

TOY = Vocabulary(
    name="toy",
    symbols=("A", "B", "C", "D"),
    ensembl_ids=("ENSG01", "ENSG02", "ENSG03", "ENSG04"),
    other_symbols=(("OLDA", "AKA"), ("OLDB",), (), ()),
)


def slide(names, **var):
    return AnnData(csr_matrix((3, len(names)), dtype=np.float32), var=pd.DataFrame(var, index=names))


@pytest.mark.parametrize(
    ("names", "var", "expected"),
    [
        (["C", "A", "x"], {}, [2, 0, -1]),  # symbols, in any order
        (["ENSG02", "ENSG03.14", "ENSG99"], {}, [1, 2, -1]),  # ids, with version or without
        (["OLDA", "B"], {}, [0, 1]),  # a former symbol
        (["OLDA", "A"], {}, [-1, 0]),  # ... only if the exact column is absent
        (["ENSG01", "A"], {}, [-1, 0]),
        (["OLDA", "ENSG01.2"], {}, [-1, 0]),  # an id is better than a former symbol
        (["OLDA"], {"gene_ids": ["ENSG01.5"]}, [0]),  # the id agrees
        (["OLDA"], {"gene_ids": ["ENSG77"]}, [-1]),  # it doesn't
        (["OLDA", "OLDB"], {"gene_ids": ["", "ENSG77"]}, [0, -1]),
        (["x", "y"], {"gene_ids": ["ENSG04", "nothing"]}, [3, -1]),  # the id alone
        (["OLDA", "AKA", "B"], {}, [0, 0, 1]),  # two of the same rank are added up
        (["a", "olda"], {}, [-1, -1]),  # case counts: mouse genes are no human ones
    ],
)
def test_rules(names, var, expected):
    alignment = match_genes(slide(names, **var), TOY, min_coverage=0)
    assert alignment.index.tolist() == expected
    assert alignment.report["n_matched"] == len({i for i in expected if i >= 0})


def test_duplicated_columns_are_added_up_before_the_logarithm(log):
    from sagefm.pp._counts import Counts

    adata = slide(["A", "B", "A", "x"])
    adata.X = csr_matrix([[1, 0, 2, 9], [0, 5, 0, 9], [3, 0, 0, 9]], dtype=np.float32)
    adata.var_names = ["A", "B", "A", "x"]
    alignment = match_genes(adata, TOY, min_coverage=0)
    assert "added up: 'A'" in log.text
    everything = np.array([0, 1])
    nothing = np.empty(0, np.int64)
    expected = np.log1p([[3, 0], [0, 5], [3, 0]])
    block = Counts(adata, alignment.index).reader(everything, nothing)(slice_all := slice(0, 3))
    np.testing.assert_allclose(block.dense, expected, rtol=1e-6)
    block = Counts(adata, alignment.index).reader(nothing, everything)(slice_all)
    found = csr_matrix((block.values, block.genes, block.indptr), shape=(3, 2)).toarray()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(adata.X.toarray()[:, 0], [1, 0, 3])  # the slide is as it was


def test_shipped_vocabulary():
    vocabulary = hest1k()
    assert len(vocabulary) == 14_558
    assert vocabulary.symbols[:2] == ("LACTB", "CARM1")
    assert vocabulary.find(["LACTB", "ENSG00000103642", "ENSG00000103642.11", "FLJ14902", "no"]).tolist() == [
        *(0, 0, 0, 0),
        -1,
    ]


def test_writes_and_reports():
    adata = sg.datasets.simulated_visium(4, 5, n_genes=11_000)
    assert sg.pp.align_genes(adata) is None
    report = adata.uns["sage_genes"]
    assert report["n_matched"] == 11_000
    assert report["coverage"] == pytest.approx(11_000 / 14_558)
    assert len(report["missing"]) == 3_558
    symbols = np.array(hest1k().symbols)[adata.var["sage_gene"]]
    assert symbols.tolist() == adata.var_names.tolist()


def test_column_of_symbols():
    adata = sg.datasets.simulated_visium(4, 5, n_genes=11_000)
    expected = hest1k().find_symbols(adata.var_names)
    adata.var["symbol"] = adata.var_names
    adata.var_names = [f"probe_{i}" for i in range(adata.n_vars)]
    del adata.var["gene_ids"]
    with pytest.raises(ValueError, match="gene_symbols="):
        sg.pp.align_genes(adata)
    sg.pp.align_genes(adata, gene_symbols="symbol")
    assert (adata.var["sage_gene"] == expected).all()
    # The other functions stay with the column, also once genes were dropped.
    part = adata[:, 1000:].copy()
    alignment, is_new = get_alignment(part, hest1k())
    assert is_new
    assert alignment.index.tolist() == expected[1000:].tolist()
    assert get_alignment(adata, hest1k())[1] is False


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.uns.__setitem__("sage_genes", {}),
        lambda a: a.uns.__setitem__("sage_genes", "x"),
        lambda a: a.uns["sage_genes"].pop("fingerprint"),
        lambda a: a.var.__setitem__("sage_gene", a.var["sage_gene"].to_numpy()[::-1]),
        lambda a: a.var.__setitem__("sage_gene", 99_999),
        lambda a: a.var.__setitem__("sage_gene", "x"),
        lambda a: a.var.pop("sage_gene"),
    ],
)
def test_a_stale_or_broken_alignment_is_made_again(slide, change):
    sg.pp.align_genes(slide)
    expected = slide.var["sage_gene"].to_numpy().copy()
    change(slide)
    alignment, is_new = get_alignment(slide, hest1k())
    assert is_new
    np.testing.assert_array_equal(alignment.index, expected)


def test_ids_that_come_later_count(slide):
    names = slide.var_names.tolist()
    slide.var_names = [f"unknown{i}" if i < 2000 else name for i, name in enumerate(names)]
    ids = slide.var.pop("gene_ids")
    sg.pp.align_genes(slide)
    assert slide.uns["sage_genes"]["n_matched"] == 8_500
    slide.var["gene_ids"] = ids.to_numpy()
    assert get_alignment(slide, hest1k())[0].report["n_matched"] == 10_500


@pytest.mark.parametrize("share", [-1, 2, np.nan, None, "a"])
def test_share_is_a_share(share):
    with pytest.raises(ValueError, match="min_coverage="):
        sg.pp.align_genes(slide(["A"]), min_coverage=share)


def test_recomputed_for_another_vocabulary(slide):
    sg.pp.align_genes(slide)
    other = Vocabulary(name="other", symbols=tuple(reversed(hest1k().symbols)))
    alignment, is_new = get_alignment(slide, other)
    assert is_new
    assert alignment.report["vocabulary"] == "other"
    assert (np.array(other.symbols)[alignment.index] == slide.var_names).all()


@pytest.mark.parametrize(("n_genes", "warns"), [(11_000, False), (6_000, True)])
def test_low_coverage_warns(log, n_genes, warns):
    adata = sg.datasets.simulated_visium(4, 5, n_genes=n_genes)
    sg.pp.align_genes(adata)
    assert ("has only" in log.text) is warns


def test_a_slide_reduced_to_variable_genes_is_told():
    adata = sg.datasets.simulated_visium(4, 5, n_genes=6_000)
    adata.var["highly_variable"] = np.arange(adata.n_vars) < 2_000
    with pytest.raises(ValueError, match="reduced to its variable genes, start from all of them"):
        sg.pp.align_genes(adata[:, adata.var["highly_variable"]].copy())


def test_panel_is_refused_unless_told(section, tiny):
    adata = section("HCC1_2000g")
    with pytest.raises(ValueError, match=r"has 13\d\d of the model's 14558 genes .* min_coverage=0.09"):
        sg.pp.align_genes(adata)
    assert "sage_gene" not in adata.var
    sg.pp.neighborhood_graph(adata)
    with pytest.raises(ValueError, match="align_genes"):
        sg.tl.sage_embed(adata, tiny)
    sg.pp.align_genes(adata, min_coverage=0.05)
    sg.tl.sage_embed(adata, tiny, device="cpu")
    assert np.isfinite(adata.obsm["X_sage"]).all()


def test_mouse_is_named():
    names = [symbol.capitalize() for symbol in hest1k().symbols[:3000]]
    with pytest.raises(ValueError, match="mouse"):
        sg.pp.align_genes(slide(names))


HUMAN = hest1k().symbols[:6000]
MOUSE = [symbol.capitalize() for symbol in HUMAN]


@pytest.mark.parametrize("as_table", [False, True])
@pytest.mark.parametrize("human", [HUMAN, hest1k().ensembl_ids[:6000]], ids=["symbols", "ids"])
def test_orthologs_translate(as_table, human):
    adata = slide(MOUSE)
    pairs = dict(zip(MOUSE, human, strict=True))
    sg.pp.align_genes(adata, orthologs=pd.DataFrame(pairs.items()) if as_table else pairs)
    known = np.array(human) != ""
    np.testing.assert_array_equal(adata.var["sage_gene"][known], np.arange(6000)[known])
    assert adata.var["sage_ortholog"].tolist() == [
        symbol if name else "" for symbol, name in zip(HUMAN, human, strict=True)
    ]
    assert adata.uns["sage_genes"]["orthologs"] is True
    # Genes that change later are matched by the same column.
    assert get_alignment(adata[:, 10:].copy(), hest1k())[0].index[:3].tolist() == [10, 11, 12]


def test_orthologs_that_are_no_pairs():
    table = pd.DataFrame({"mouse": [*MOUSE, MOUSE[0], MOUSE[2], MOUSE[2]], "human": [*HUMAN, "TP53", HUMAN[2], None]})
    table.loc[1, "human"] = HUMAN[3]  # shared by two
    adata = slide([*MOUSE, "Gm1"])
    sg.pp.align_genes(adata, orthologs=table)
    found = adata.var["sage_gene"].to_numpy()
    assert found[0] == -1  # two human genes
    assert found[1] == found[3] == 3
    assert found[2] == 2  # named twice alike
    assert found[-1] == -1


def test_orthologs_by_symbol_and_by_id_are_one_gene():
    ids = hest1k().ensembl_ids
    gene = next(i for i in range(1000) if ids[i])
    adata = slide([*MOUSE, "Extra"])
    table = pd.DataFrame({"mouse": [*MOUSE, "Extra", MOUSE[gene]], "human": [*HUMAN, f" {ids[gene]}", ids[gene]]})
    sg.pp.align_genes(adata, orthologs=table)
    assert adata.var["sage_gene"].iloc[gene] == gene  # under both names
    assert adata.var["sage_gene"].iloc[-1] == gene  # added up with it


def test_ids_of_the_slide_dont_overrule_orthologs():
    adata = slide(MOUSE)
    adata.var["gene_ids"] = list(hest1k().ensembl_ids[:6000])
    pairs = dict(zip(MOUSE[10:], HUMAN[10:], strict=True))
    sg.pp.align_genes(adata, orthologs=pairs)
    assert (adata.var["sage_gene"].iloc[:10] == -1).all()
    assert get_alignment(adata, hest1k())[1] is False


@pytest.mark.parametrize(
    ("orthologs", "error", "match"),
    [
        ({}, ValueError, "it has none, the slide"),
        ({"Krt8": ["KRT8"]}, TypeError, r"hold names, got \['KRT8'\]"),
        ({"Xyz": "TP53"}, ValueError, "names none of the slide's genes"),
        ([("Tp53", "TP53")], TypeError, "mapping, or a table"),
        (pd.DataFrame({"one": ["Tp53"]}), TypeError, "mapping, or a table"),
    ],
)
def test_ortholog_refusals(orthologs, error, match):
    adata = slide(MOUSE)
    with pytest.raises(error, match=match):
        sg.pp.align_genes(adata, orthologs=orthologs)
    assert list(adata.var) == []


def test_nothing_is_translated_by_letters_alone():
    """Upper-casing would match these."""
    with pytest.raises(ValueError, match=r"orthologs=\.\.\."):
        sg.pp.align_genes(slide(MOUSE))


def test_refusal_names_the_column_to_use():
    adata = slide([f"gene{i}" for i in range(6000)])
    adata.var["feature_name"] = list(HUMAN)
    adata.var["score"] = 1.0
    with pytest.raises(ValueError, match=r"var\['feature_name'\] names 6000 known genes.*gene_symbols='feature_name'"):
        sg.pp.align_genes(adata)
    sg.pp.align_genes(adata, gene_symbols="feature_name")
    assert adata.uns["sage_genes"]["n_matched"] == 6000


def test_refusal_points_at_raw():
    adata = slide(list(HUMAN))
    adata.raw = adata
    with pytest.raises(ValueError, match=r"adata.raw has 6000 genes, adata 500.*adata.raw.to_adata\(\)"):
        sg.pp.align_genes(adata[:, :500].copy())


def test_other_symbols_rescue_genes_on_real_sections(section):
    adata = section("her2st_G2")
    sg.pp.align_genes(adata)
    report = adata.uns["sage_genes"]
    assert 200 < report["by_other_symbol"] < 300
    by_symbol = (hest1k().find_symbols(adata.var_names) >= 0).sum()
    assert report["n_matched"] == by_symbol + report["by_other_symbol"]


def test_unknown_column():
    with pytest.raises(KeyError, match="'symbol' not in adata.var"):
        sg.pp.align_genes(slide(["A"]), gene_symbols="symbol")
