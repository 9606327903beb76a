"""Class maps become label maps: rules, dense CRF, random walk. No network is loaded here.

Nothing is re-exported: the CRF's worker processes import this package, and must not pay for torch.
"""
