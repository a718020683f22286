"""The GPU that is none refuses what a real one does."""

import pytest
import torch


def test_what_is_put_into_a_tensor_must_be_on_its_device(gpu):
    """Unlike the indices, and single numbers."""
    found, index = torch.zeros(4).to(gpu), torch.tensor([1, 2])
    with pytest.raises(RuntimeError, match=r"on a GPU and on the CPU|device"):
        found[index] = torch.ones(2)
    found[index] = torch.ones(2).to(gpu)
    found[torch.tensor([3])] = torch.tensor(7.0)
    assert found.cpu().tolist() == [0, 1, 1, 7]
