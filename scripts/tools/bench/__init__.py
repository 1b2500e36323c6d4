"""Measure kvmpv beside its peers: every figure is a ratio of medians from the same run."""
