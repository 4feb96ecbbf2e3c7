"""The samples of a search: a Dataset of any kind, or a DataLoader, which stands for its dataset."""

import pytest
import torch
import torch.utils.data
from search_tools import Pairs, Task, every_method
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from amun_ext import InputError, find_min_adversarial


class TestDatasets:
    @every_method
    def test_any_map_style_dataset(self, few: Task, method) -> None:
        model, images, labels = few
        tensors = find_min_adversarial(model, images, labels, method=method)
        pairs = Pairs(*zip(images, labels.tolist(), strict=True))
        for dataset in (TensorDataset(images, labels), pairs):
            assert torch.equal(find_min_adversarial(model, dataset, method=method).images, tensors.images)

    @pytest.mark.parametrize(
        ("item", "message"),
        [
            ((torch.zeros(1, 6, 5), 0), r"inputs\[70\] must be an image like inputs\[.*\], \(1, 6, 6\) torch.float32"),
            ((torch.zeros(1, 6, 6).double(), 0), r"inputs\[70\] must be an image like"),
            ((torch.full((1, 6, 6), torch.nan), 0), r"inputs\[70\] must be free of NaN"),
            ((torch.full((1, 6, 6), 1.5), 0), r"inputs\[70\] must be inside bounds"),
            ((torch.zeros(1, 6, 6), -1), r"inputs\[70\] label must be in \[0, 4\)"),
            ((torch.zeros(1, 6, 6), 4), r"inputs\[70\] label must be in \[0, 4\), got values from 4 to 4"),
            ((torch.zeros(1, 6, 6), 0.5), r"inputs\[70\] must be a pair"),
            ((torch.zeros(1, 6, 6),), r"inputs\[70\] must be a pair"),
            (None, r"inputs\[70\] must be a pair"),
        ],
    )
    def test_a_bad_item_is_named(self, task: Task, item, message: str) -> None:
        model, images, labels = task
        pairs = Pairs(*zip(images, labels.tolist(), strict=True))
        pairs.items = (*pairs.items[:70], item, *pairs.items[71:])
        with pytest.raises(InputError, match=message):
            find_min_adversarial(model, pairs, method="ddn", steps=2)

    @pytest.mark.parametrize("row", [0, 3])
    def test_a_bad_item_among_the_first_ones(self, task: Task, row: int) -> None:
        model, images, labels = task
        images[row] = torch.nan
        with pytest.raises(InputError, match=rf"inputs\[{row}\] must be free of NaN"):
            find_min_adversarial(model, Pairs(*zip(images, labels.tolist(), strict=True)))


# Each class is the difference of two numbers of its own: in the box all can be reached.
MODEL = nn.Linear(6, 3, bias=False).requires_grad_(False)
MODEL.weight.copy_(torch.cat([torch.eye(3), -torch.eye(3)], 1))


@pytest.fixture
def data() -> TensorDataset:
    images = torch.rand(9, 6)
    return TensorDataset(images, MODEL(images).argmax(1))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    "kind", [lambda data: Pairs(*((image, int(label)) for image, label in data)), lambda data: data]
)
def test_loader_is_its_dataset_in_order(data: TensorDataset, kind, shuffle: bool) -> None:
    expected = find_min_adversarial(MODEL, *data.tensors, method="ddn")
    result = find_min_adversarial(MODEL, DataLoader(kind(data), batch_size=4, shuffle=shuffle), method="ddn")
    assert torch.equal(result.images, expected.images)
    assert result.source_index.tolist() == list(range(9))


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


def test_loader_one_that_gives_out_something_else_is_refused(data: TensorDataset) -> None:
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
