"""Files, downloads, scratch space, and where results go."""
