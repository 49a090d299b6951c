"""Plots of in-silico perturbations."""
