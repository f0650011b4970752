"""Data sets as uint8 images with labels, small enough to hold in memory."""

from .fashion_mnist import DataSet, load_fashion_mnist

__all__ = ["DataSet", "load_fashion_mnist"]
