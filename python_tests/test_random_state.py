"""Trainings and searches in threads of one process, whose random state they share."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kill_tools import HANG
from torch import nn
from torch.utils.data import TensorDataset

from amun_ext import find_min_adversarial, unlearn
from amun_ext.random_state import own_random_state, same_random_state
from amun_ext.training import Recipe

SHORT = Recipe(epochs=3, lr=0.05, batch_size=8)


def dropping() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3)).eval()


@pytest.fixture
def data() -> tuple[TensorDataset, TensorDataset]:
    images, labels = torch.rand(60, 6), torch.randint(3, (60,))
    return TensorDataset(images[:10], labels[:10]), TensorDataset(images[10:], labels[10:])


@pytest.mark.parametrize("method", ["ft", "retrain"])
def test_training_in_threads_gives_the_results_of_one(data, method: str) -> None:
    model = dropping()

    def weights(seed: int) -> dict[str, torch.Tensor]:
        return unlearn(model, *data, method=method, recipe=SHORT, seed=seed).state_dict()

    expected = [weights(seed) for seed in range(4)]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as threads:
        result = list(threads.map(weights, range(4)))
    for one, other in zip(result, expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_search_in_another_thread_does_not_disturb_a_training(data) -> None:
    """It begins before the training and ends in its midst, or the other way round."""
    model, other = dropping(), nn.Linear(6, 3)
    expected = unlearn(model, *data, method="ft", recipe=SHORT).state_dict()
    trains, searched, epochs = threading.Event(), threading.Event(), []

    def search() -> None:
        images = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
        with same_random_state():
            searching.set()
            assert trains.wait(HANG)
            find_min_adversarial(other, images, other(images).argmax(1), method="ddn")
        searched.set()

    def pause(epoch: object) -> None:
        epochs.append(epoch)
        trains.set()
        assert searched.wait(HANG)

    searching = threading.Event()
    thread = threading.Thread(target=search)
    thread.start()
    assert searching.wait(HANG)
    result = unlearn(model, *data, method="ft", recipe=SHORT, on_epoch=pause).state_dict()
    thread.join()
    assert len(epochs) == SHORT.epochs
    assert all(torch.equal(result[name], expected[name]) for name in expected)


def test_the_state_is_as_before() -> None:
    def fail() -> None:
        torch.rand(3)
        raise ZeroDivisionError

    for kept in (own_random_state, same_random_state):
        before = torch.get_rng_state()
        with pytest.raises(ZeroDivisionError), kept(), own_random_state(), same_random_state():
            fail()
        assert torch.equal(torch.get_rng_state(), before)
