"""Protocols and their metrics: score any callable from images to Reconstruction."""
