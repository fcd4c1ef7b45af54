"""Read a trained network and hand it on as the canonical float module."""

from .load import load_model

__all__ = ["load_model"]
