"""Embedding of many sections."""
