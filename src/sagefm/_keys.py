"""The names of every slot that sagefm reads or writes in an ``AnnData``, spelled here alone."""

# Graph: obsp[f"{GRAPH}_connectivities"], obsp[f"{GRAPH}_distances"], uns[f"{GRAPH}_neighbors"], the
# suffixes being squidpy's.
GRAPH = "sage"
CONNECTIVITIES = "{}_connectivities"
DISTANCES = "{}_distances"
NEIGHBORS = "{}_neighbors"
FAR_NEIGHBORS = "{}_far_neighbors"

SPATIAL = "spatial"
ARRAY_ROW = "array_row"
ARRAY_COL = "array_col"

# Pseudo-spots.
PSEUDOSPOT = "pseudospot"  # obs, uns
IN_PSEUDOSPOT = "in_{}"  # obs
N_BINS = "n_bins"  # obs
PSEUDOSPOT_TABLE = "{}s"  # tables of a SpatialData
PSEUDOSPOT_CIRCLES = "{}s_circles"  # shapes of a SpatialData
PSEUDOSPOT_REGION, PSEUDOSPOT_ID = "{}_region", "{}_id"  # obs of that table

# What scanpy and squidpy keep of Space Ranger's output: uns["spatial"][library]["scalefactors"].
SCALEFACTORS = "scalefactors"
MICRONS_PER_PIXEL = "microns_per_pixel"
SPOT_DIAMETER = "spot_diameter_fullres"

# Genes.
GENE_INDEX = "sage_gene"  # var
GENES = "sage_genes"  # uns
ORTHOLOG = "sage_ortholog"  # var
ENSEMBL_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl")  # var, first one present is read

# Results.
ASSESSMENT = "sage_assessment"
EMBEDDING = "X_sage"
MOFA = "X_mofa"
NICHEPCA = "X_nichepca"
IMPUTED = "sage_imputed"
LOWER, UPPER = "{}_lower", "{}_upper"  # obsm, of an imputed key
RELIABILITY = "sage_reliability"  # var
CLUSTER = "sage_cluster"
CLUSTER_MARKERS = "sage_cluster_markers"
CLUSTER_COMPOSITION = "sage_cluster_composition"
ANNOTATION = "sage_annotation"
COMPOSITION = "sage_composition"
PERTURB_LR = "perturb_lr"
PERTURB_TARGETS = "perturb_targets"
SENSITIVITY = "gene_sensitivity"


def connectivities(key: str) -> str:
    """Full ``obsp`` key of a graph: ``"sage"`` and ``"sage_connectivities"`` name the same one."""
    return key if key.endswith("_connectivities") else CONNECTIVITIES.format(key)
