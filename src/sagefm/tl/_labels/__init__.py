"""Labels and likelihoods of spots."""
