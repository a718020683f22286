"""Recipes: one a method, and overlays for data, benchmarks, papers and ablations."""
