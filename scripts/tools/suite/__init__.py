"""The test suite: its tiers, where each runs, its budget and its report."""
