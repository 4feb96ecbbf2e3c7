"""What tests of data sets share."""

import torch
from torch.utils.data import Dataset

GREY = torch.full((1, 3, 3), 0.5)


def expect(splits, train, test, classes):
    for dataset, shape in ((splits.train, train), (splits.test, test)):
        images, labels = dataset.tensors
        assert (images.shape, images.dtype) == (shape, torch.float32)
        assert (labels.shape, labels.dtype) == (shape[:1], torch.int64)
        assert 0 <= images.min() <= images.max() <= 1
        assert set(labels.tolist()) <= set(range(len(classes)))
    assert splits.classes == tuple(classes)


class Items(Dataset):
    """A map-style dataset of whatever it is given."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]
