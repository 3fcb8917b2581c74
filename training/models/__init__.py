"""Networks: one family a file, found by name through `training.models.registry`."""
