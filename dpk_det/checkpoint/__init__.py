"""Weights: read without running code, and loaded leniently, strictly, or the backbone alone."""
