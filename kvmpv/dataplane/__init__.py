"""The compiled loops that carry a guest's data: docs/dataplane.md."""
