"""unlearn takes datasets of any kind for what tensors are, and names the item that it cannot take."""

import numpy as np
import pytest
import torch
from method_tools import Recording, labelled, needs
from torch import Tensor
from torch.utils.data import IterableDataset, Subset, TensorDataset, random_split
from training_tools import FORKS, Brighter, Items, Noisy, equal

from amun_ext import InputError, unlearn
from amun_ext.data import find_duplicates
from amun_ext.training import Recipe
from amun_ext.unlearning import METHODS

pytestmark = pytest.mark.filterwarnings(FORKS)
RECIPE = Recipe(2, 0.1, batch_size=8)


@pytest.fixture
def model() -> Recording:
    return Recording()


@pytest.fixture
def forget(model: Recording) -> TensorDataset:
    return labelled(model, 6)


@pytest.fixture
def retain(model: Recording) -> TensorDataset:
    return labelled(model, 15)


@pytest.mark.parametrize("method", METHODS)
def test_items_are_as_good_as_tensors_and_may_be_random(model: Recording, forget, retain, method: str) -> None:
    class Bounded(Noisy):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            image, label = super().__getitem__(index)
            return image.clamp(0, 1), label

    random, options = torch.get_rng_state(), {"method": method, "recipe": RECIPE, **needs(method, forget)}
    expected = unlearn(model, forget, retain, **options)
    assert equal(unlearn(model, Items(forget), Items(retain), **options), expected)
    unlearn(model, Bounded(forget), Bounded(retain), **options)
    assert torch.equal(torch.get_rng_state(), random)


def in_pairs(kind) -> object:
    return lambda data: [(image, kind(int(label))) for image, label in zip(*data.tensors, strict=True)]


KINDS = {
    **{kind.__name__: in_pairs(kind) for kind in (int, np.int64, np.uint8, torch.tensor)},
    "one element": in_pairs(lambda label: torch.tensor([label])),
    **{
        str(dtype): lambda data, dtype=dtype: TensorDataset(data.tensors[0], data.tensors[1].to(dtype))
        for dtype in (torch.int32, torch.uint8, torch.int16)
    },
    "double": lambda data: TensorDataset(data.tensors[0].double(), data.tensors[1]),
    "double items": lambda data: Items(TensorDataset(data.tensors[0].double(), data.tensors[1])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_types_of_items(model: Recording, forget, retain, kind: str) -> None:
    """Lists of pairs; labels that are NumPy's, tensors, and tensors of one element; other types of numbers."""
    given = forget if "double" in kind else KINDS[kind](forget)
    results = [
        unlearn(model, *sets, method="ga", recipe=RECIPE) for sets in ((given, KINDS[kind](retain)), (forget, retain))
    ]
    assert equal(*results)


def test_workers_read_the_retain_set_and_a_forget_set_is_read_once(model: Recording, forget, retain) -> None:
    """Its labels, its examples and what is trained on are of the same drawing, should it be random."""

    class Counting(Items):
        read = 0

        def __getitem__(self, index: int) -> object:
            self.read += 1
            return super().__getitem__(index)

    counted = Counting(forget)
    given = unlearn(model, counted, Items(retain), recipe=RECIPE, num_workers=2)
    assert equal(given, unlearn(model, forget, retain, recipe=RECIPE))
    assert counted.read == 6


def test_subsets_of_tensors_are_in_memory(model: Recording, forget, monkeypatch) -> None:
    everything, rows = labelled(model, 30), list(range(29, 3, -2))
    retain = TensorDataset(*(tensor[rows] for tensor in everything.tensors))
    expected = unlearn(model, forget, retain, recipe=RECIPE)
    monkeypatch.setattr("amun_ext.training.parts.DataLoader", None)
    nested = Subset(Subset(everything, range(30)[::-1]), np.arange(0, 26, 2))
    for subset in (Subset(everything, rows), Subset(everything, torch.tensor(rows)), nested):
        assert equal(unlearn(model, forget, subset, recipe=RECIPE), expected)
    for part in random_split(everything, [10, 20]):
        unlearn(model, forget, part, recipe=RECIPE)


def test_a_subclass_of_tensor_dataset_may_change_items(model: Recording, forget, retain) -> None:
    class Half(Subset):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            image, label = super().__getitem__(index)
            return image / 2 + 5, label

        def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
            return [self[index] for index in indices]

    brighter = Brighter(*retain.tensors)
    for own in (brighter, Half(retain, range(15)), Subset(brighter, range(15))):
        Recording.seen.clear()
        unlearn(model, forget, own, method="ft", recipe=RECIPE)
        assert torch.cat(Recording.seen).min() >= 5


class TestDuplicates:
    def test_of_tensors(self, model: Recording, forget, retain) -> None:
        both = TensorDataset(*(torch.cat([a, b[3:4]]) for a, b in zip(retain.tensors, forget.tensors, strict=True)))
        relabelled = TensorDataset(both.tensors[0].double(), (both.tensors[1] + 1) % 3)
        signed = [TensorDataset(torch.tensor([[zero, 1.0]]), torch.tensor([0])) for zero in (0.0, -0.0)]
        assert find_duplicates(forget, retain) == []
        assert find_duplicates(forget, both) == find_duplicates(forget, relabelled) == [(3, 15)]
        assert find_duplicates(*signed) == [(0, 0)]

    def test_in_the_retain_set_are_refused(self, model: Recording, forget, retain) -> None:
        copied = Items(retain, {7: (forget.tensors[0][2].double(), 0), 8: (forget.tensors[0][0], 1)})
        for given, found in ((copied, r"\[\(2, 7\), \(0, 8\)\]"), (Subset(copied, [3, 7, 5]), r"\[\(2, 1\)\]")):
            with pytest.raises(InputError, match=rf"^retain must be free of the forget samples.*{found}"):
                unlearn(model, forget, given, method="ft")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((torch.full((6,), torch.nan), 0), "free of NaN"),
        ((torch.full((6,), torch.inf), 0), "finite"),
        (
            (torch.ones(5), 0),
            r"of the forget set's input shape \(6,\), got \(5,\)",
        ),
        ((torch.ones(6, dtype=torch.uint8), 0), "floating point"),
        ((torch.ones(6), 3), r"in \[0, 3\)"),
        ((torch.ones(6), -1), r"in \[0, 3\)"),
        ((torch.ones(6), 1.0), "a pair"),
        ((np.zeros(6), 0), r"a pair .*, got \(ndarray, int\)"),
        (torch.ones(6), "a pair"),
        (None, "a pair"),
    ],
)
def test_a_bad_item_is_named(model: Recording, forget, retain, item: object, message: str) -> None:
    with pytest.raises(InputError, match=rf"^retain\[4\] (label )?must be {message}"):
        unlearn(model, forget, Items(retain, {4: item}), method="ft")
    assert not Recording.seen


def test_bad_items_of_the_forget_set(model: Recording, forget) -> None:
    for item in ((torch.rand(5), 0), (torch.rand(6).double(), 0), (torch.rand(6), 0.5), 7):
        with pytest.raises(InputError, match=r"^forget\[2\] must be "):
            unlearn(model, Items(forget, {2: item}), method="rl")
    with pytest.raises(InputError, match=r"^forget images must be free of NaN"):
        unlearn(model, Items(forget, {2: (torch.full((6,), torch.nan), 0)}), method="rl")


def test_what_is_no_map_style_dataset_or_empty(model: Recording, forget) -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.rand(6), 0

    nothing = TensorDataset(torch.rand(0, 6), torch.zeros(0, dtype=torch.long))
    bad = {"a map-style dataset .*, got (Stream|int)": (Stream(), 7), "non-empty": ([], nothing, Items(nothing))}
    for message, sets in bad.items():
        for wrong in sets:
            for name, given in (("forget", (wrong,)), ("retain", (forget, wrong))):
                with pytest.raises(InputError, match=rf"^{name} must be {message}"):
                    unlearn(model, *given)
