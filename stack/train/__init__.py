"""Composition and the training loops."""
