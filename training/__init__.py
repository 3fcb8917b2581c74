"""fivecrop trains image classifiers and exports them as bundles."""
