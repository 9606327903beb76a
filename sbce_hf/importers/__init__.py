"""Weights of other programs become checkpoints and trunk files of this library; no pickled code is ever run."""
