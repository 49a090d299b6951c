"""Clusters and their genes."""
