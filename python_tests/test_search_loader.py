"""A DataLoader as the input of a search: it stands for its dataset."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from amun_ext import InputError, find_min_adversarial

# Each class is the difference of two numbers of its own: in the box all can be reached.
MODEL = nn.Linear(6, 3, bias=False).requires_grad_(False)
MODEL.weight.copy_(torch.cat([torch.eye(3), -torch.eye(3)], 1))


@pytest.fixture
def data() -> TensorDataset:
    images = torch.rand(9, 6)
    return TensorDataset(images, MODEL(images).argmax(1))


class Items(torch.utils.data.Dataset):
    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        image, label = self.data[row]
        return image, int(label)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", [Items, lambda data: data], ids=["items", "tensors"])
def test_is_its_dataset_in_order(data: TensorDataset, kind, shuffle: bool) -> None:
    expected = find_min_adversarial(MODEL, *data.tensors, method="ddn")
    result = find_min_adversarial(MODEL, DataLoader(kind(data), batch_size=4, shuffle=shuffle), method="ddn")
    assert torch.equal(result.images, expected.images)
    assert result.source_index.tolist() == list(range(9))


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


def test_one_that_gives_out_something_else_is_refused(data: TensorDataset) -> None:
    loaders = {
        "SubsetRandomSampler": DataLoader(data, sampler=SubsetRandomSampler([1, 2])),
        "WeightedRandomSampler": DataLoader(data, sampler=torch.utils.data.WeightedRandomSampler([1.0] * 9, 9)),
        "<function": DataLoader(data, collate_fn=lambda items: items),
        "_InfiniteConstantSampler": DataLoader(Endless()),
    }
    for got, loader in loaders.items():
        with pytest.raises(InputError, match=f"^inputs must be a DataLoader of all items.*, got {got}"):
            find_min_adversarial(nn.Linear(6, 3), loader)
    with pytest.raises(InputError, match=r"^inputs must be a tensor"):
        find_min_adversarial(nn.Linear(6, 3), DataLoader(data), data.tensors[1])
