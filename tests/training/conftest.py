"""What several files of tests of training use."""

from __future__ import annotations

import pytest
import torch.distributed as dist


@pytest.fixture
def group(tmp_path):
    """A group of one process, which sums over itself; test_training_processes has two."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()
