"""f-distill: one-step students of many-step diffusion models (arXiv 2502.15681)."""

__version__ = "0.1.0"
