"""Genes that people look for first, by what they mark; a model that doesn't know one can say nothing of it."""

MARKERS: dict[str, tuple[str, ...]] = {
    "epithelium": ("EPCAM", "CDH1", "KRT5", "KRT8", "KRT14", "KRT18", "KRT19", "MUC1"),
    "breast": ("ERBB2", "ESR1", "PGR", "GATA3", "AR"),
    "T and NK cells": ("CD3D", "CD3E", "CD4", "CD8A", "FOXP3", "GNLY", "NKG7", "GZMB"),
    "B and plasma cells": ("CD19", "MS4A1", "CD79A", "MZB1", "JCHAIN", "IGHG1", "IGKC"),
    "myeloid cells": ("PTPRC", "CD14", "CD68", "CD163", "ITGAX", "LYZ", "S100A8", "S100A9"),
    "antigen presentation": ("B2M", "HLA-A", "HLA-B", "HLA-DRA"),
    "checkpoints": ("PDCD1", "CD274", "CTLA4", "LAG3", "HAVCR2"),
    "stroma": ("COL1A1", "COL3A1", "DCN", "ACTA2", "FAP", "PDGFRB", "VIM"),
    "vessels and hypoxia": ("PECAM1", "VWF", "KDR", "VEGFA", "CA9", "HIF1A"),
    "fat": ("ADIPOQ", "PLIN1"),
    "proliferation": ("MKI67", "TOP2A", "PCNA"),
    "nervous system": ("SNAP25", "RBFOX3", "GFAP", "AQP4", "MBP", "PLP1", "OLIG2"),
    "liver": ("ALB", "APOA1", "CYP3A4"),
    "kidney": ("UMOD", "NPHS1", "AQP2"),
    "lung": ("SFTPC", "SCGB1A1"),
    "gut": ("CDX2", "MUC2", "OLFM4"),
    "pancreas": ("INS", "GCG", "PRSS1"),
    "melanocytes": ("PMEL", "MLANA"),
    "mitochondria and ribosomes": ("MT-CO1", "MT-ND1", "RPLP0", "RPS18"),
}
