"""The luma of BT.601, which JPEG, the metrics and the figures share."""

BT601 = (0.299, 0.587, 0.114)
"""Weights of red, green and blue; their sum is one."""
