"""Imputation, its reliability and its intervals."""
