"""Load and peer comparisons: what the service costs beside the work that it cannot avoid."""
