"""The names of every slot that sagefm reads or writes in an ``AnnData``, spelled here alone.

The text below a name says what the slot holds, one ``slot : meaning`` a line; docs/keys.md is made of it. ``{}`` stands
for what ``key_added`` says, by default the nearest name above that has no ``{}``.
"""

GRAPH = "sage"
"""The graph's name in squidpy's manner (``key_added``, ``connectivity_key``); the slots below have its suffixes."""

CONNECTIVITIES = "{}_connectivities"
"""
obsp : neighbors of each spot (CSR, ones, directed, without the spot itself); squidpy reads it too
"""
DISTANCES = "{}_distances"
"""
obsp : their distances, in the unit of ``uns["sage_neighbors"]["params"]["distance_unit"]``
"""
NEIGHBORS = "{}_neighbors"
"""
uns : keys and ``params`` of the graph, as squidpy writes them
"""
FAR_NEIGHBORS = "{}_far_neighbors"
"""
obs : whether a spot has a neighbor more than five spacings away, or none
"""

SPATIAL = "spatial"
"""
obsm : coordinates of the spots; read, and written by ``datasets`` and ``pp.pseudospots``
uns : images and scale factors of Space Ranger, read for pixel sizes and spot sizes
"""
ARRAY_ROW = "array_row"
"""
obs : row of the spot on Visium's array; read, and written by ``datasets`` and ``pp.pseudospots``
"""
ARRAY_COL = "array_col"
"""
obs : column of the spot on Visium's array; every other one is free in a row
"""
IN_TISSUE = "in_tissue"
"""
obs : whether the spot is on tissue; those with 0 don't count where patches of the image are checked
"""

PSEUDOSPOT = "pseudospot"
"""
obs : of bins, the pseudo-spot whose hexagon a bin lies in
uns : ``params`` of ``pp.pseudospots``, in the bins and in the pseudo-spots
"""
IN_PSEUDOSPOT = "in_{}"
"""
obs : of bins, whether a bin was counted
"""
PSEUDOSPOT_TABLE = "{}s"
"""
tables : of a SpatialData, the pseudo-spots
"""
PSEUDOSPOT_CIRCLES = "{}s_circles"
"""
shapes : of a SpatialData, their circles
"""
PSEUDOSPOT_REGION = "{}_region"
"""
obs : of that table, the shapes that it annotates
"""
PSEUDOSPOT_ID = "{}_id"
"""
obs : of that table, the circle of each pseudo-spot
"""
N_BINS = "n_bins"
"""
obs : of pseudo-spots, how many bins were added up
"""

# What scanpy and squidpy keep of Space Ranger's output: uns["spatial"][library]["scalefactors"].
SCALEFACTORS = "scalefactors"
MICRONS_PER_PIXEL = "microns_per_pixel"
SPOT_DIAMETER = "spot_diameter_fullres"

GENE_INDEX = "sage_gene"
"""
var : index of the gene in the model's vocabulary, -1 where it isn't in there
"""
GENES = "sage_genes"
"""
uns : ``coverage``, ``n_matched``, ``missing`` genes, and the vocabulary's name and hash; matched anew when these change
"""
ORTHOLOG = "sage_ortholog"
"""
var : human symbol of a gene of another species, where ``pp.align_genes`` was given a table
"""
ENSEMBL_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl")
"""
var : Ensembl ids; the first of these columns that is there is read, for genes whose symbols aren't known
"""

ASSESSMENT = "sage_assessment"
"""
uns : the trust card: ``verdict``, ``text``, ``checks``, ``slides``, ``expected_r``, ``markers_missing``
"""
QUALITY = "sage_quality"
"""
obs : ``"fine"``, or why a spot stands out among its neighbors, categorical
obsm : counts, genes and mitochondrial share of each spot, and how they differ from the neighbors', a data frame
uns : ``params``, and ``slides``, one row each
"""
EMBEDDING = "X_sage"
"""
obsm : the model's embedding, float32 (spots, dimensions); a dask array with ``store=``
uns : ``params``
"""
MOFA = "X_mofa"
"""
obsm : factors of MOFA, a baseline
uns : ``params``, ``weights`` of the genes in each factor
"""
NICHEPCA = "X_nichepca"
"""
obsm : PCA of the neighborhood's mean, a baseline
uns : ``params``, ``variance_ratio``
"""
IMPUTED = "sage_imputed"
"""
layers : predicted ``log1p`` counts of measured genes, each made with the gene hidden at the spot; NaN if not asked for
obsm : predicted ``log1p`` counts of genes that the slide lacks, a data frame (spots, genes)
uns : ``params``; ``reliability`` of measured genes, ``reliability_by_slide``; ``prior`` of absent ones; ``intervals``
"""
LOWER = "{}_lower"
"""
obsm : lower ends of the prediction intervals, ``log1p`` of whole counts, a data frame (spots, genes)
"""
UPPER = "{}_upper"
"""
obsm : upper ends
"""
RELIABILITY = "sage_reliability"
"""
var : Pearson r of measured and predicted values of the gene beyond depth; NaN where not asked for
"""
# That of another key than the default.
RELIABILITY_OF = "{}_reliability"
CLUSTER = "sage_cluster"
"""
obs : cluster of each spot, categorical
uns : ``params``, and ``scores`` (silhouette and others) of each number of clusters that was tried
"""
LEIDEN = "sage_leiden"
"""
obs : cluster of each spot by the Leiden algorithm, categorical
uns : ``params``
"""
CLUSTER_MARKERS = "sage_cluster_markers"
"""
uns : ``params``; ``results``, a row for each cluster and gene
"""
CLUSTER_PROPORTIONS = "sage_cluster_proportions"
"""
uns : ``params``; ``results``, a row for each cluster and group
"""
ANNOTATION = "sage_annotation"
"""
obs : predicted label, categorical, ``"unsure"`` where no class is probable enough
obsm : probability of each class, a data frame
uns : ``params``; ``tried``, the settings and their scores; ``scores`` on donors that were held out
"""
CONFIDENCE = "{}_confidence"
"""
obs : chance that a spot's most probable class is right
"""
COMPOSITION = "sage_composition"
"""
obsm : predicted likelihood of each class, a data frame
uns : ``params``; ``scores`` on donors that were held out
"""
PERTURB_LR = "perturb_lr"
"""
uns : ``params``; ``results``, a row for each ligand and receptor
obsm : with ``store_spots=True``, the change of each receptor at each spot, columns ``LIGAND|RECEPTOR``
"""
PERTURB_TARGETS = "perturb_targets"
"""
uns : ``params``; ``results``, a row for each gene and target; ``controls`` and ``tests`` against random genes
"""
SENSITIVITY = "gene_sensitivity"
"""
uns : ``params``; ``results``, the mean slope of each target (columns) by each gene in the neighbors (rows)
obsm : with ``store_spots=True``, the slope at each spot, columns ``GENE|TARGET``
"""
HISTOLOGY = "histology"
"""
uns : ``params`` of ``pp.histology_patches``; ``images``, where each slide's image lies
"""
HISTOLOGY_TISSUE = "{}_tissue"
"""
obs : share of the spot's patch of the image that is tissue
"""
HISTOLOGY_PADDED = "{}_padded"
"""
obs : whether the patch leaves the image
"""
HISTOLOGY_EMBEDDING = "X_histology"
"""
obsm : features of the spot's patch of the image
uns : ``params``; ``features``, what each is called
"""
HISTOLOGY_EXPRESSION = "histology_expression"
"""
obsm : expression predicted from histology, ``log1p`` at a common depth, a data frame (spots, genes)
uns : ``params``; ``scores`` of each gene on groups that were held out
"""
HISTOLOGY_RELIABILITY = "{}_reliability"
"""
var : Pearson r of measured and predicted values of the gene where groups were held out; NaN where not predicted
"""
SUPERRESOLVED = "superresolved"
"""
uns : of a new table, ``params`` of ``tl.superresolve_expression``; ``scores``, copied
"""
SUPERRESOLVED_TABLE = "{}"
"""
tables : of a SpatialData, the points
"""
SUPERRESOLVED_CIRCLES = "{}_circles"
"""
shapes : of a SpatialData, the points as circles
"""
SUPERRESOLVED_REGION = "{}_region"
"""
obs : of that table, the shapes that it annotates
"""
SUPERRESOLVED_ID = "{}_id"
"""
obs : of that table, the circle of each point
"""
NEAREST_SPOT = "nearest_spot"
"""
obs : of that table, the spot nearest to a point
"""
JOINED = "X_joined"
"""
obsm : several representations side by side, each scaled
uns : ``params``
"""


OWN = {
    *(ASSESSMENT, EMBEDDING, MOFA, NICHEPCA, JOINED, IMPUTED, CLUSTER, LEIDEN, CLUSTER_MARKERS, CLUSTER_PROPORTIONS),
    *(ANNOTATION, COMPOSITION, PERTURB_LR, PERTURB_TARGETS, SENSITIVITY),
    *(HISTOLOGY, HISTOLOGY_EMBEDDING, HISTOLOGY_EXPRESSION, SUPERRESOLVED),
}  # keys that functions write to where the user chooses none


def advise(run: str, key: str) -> str:
    """Return the call that writes a result under ``key``: ``run``, told of the key if it is one of the user's own."""
    told = key in OWN or f"key={key!r}" in run
    return run if told else run.replace(")", f", key_added={key!r})", 1)


def connectivities(key: str) -> str:
    """Full ``obsp`` key of a graph: ``"sage"`` and ``"sage_connectivities"`` name the same one."""
    return key if key.endswith("_connectivities") else CONNECTIVITIES.format(key)
