"""A checkpoint becomes label maps.

Nothing is re-exported: the CRF's worker processes import this package, and must not pay for torch.
"""
