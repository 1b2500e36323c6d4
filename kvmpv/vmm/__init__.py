"""The composition root of one domain's process. Started, never imported by other packages."""
