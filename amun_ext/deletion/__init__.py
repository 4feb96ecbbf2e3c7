"""Requests to forget: which samples, and what is left without them."""

from amun_ext.deletion.request import forget_ids, split

__all__ = ["forget_ids", "split"]
