"""What is trained on: tensors, items that are read one by one, soft labels; and what no part can be."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training_tools import FORKS, Brighter, Items, Noisy, conv_net, equal, inputs_of, linear_net, part, pictures

from amun_ext import InputError
from amun_ext.training import DataPart, Pass, Recipe, RunOptions, fit
from amun_ext.training.parts import BatchLoader

pytestmark = pytest.mark.filterwarnings(FORKS)
RECIPE = Recipe(2, 0.1, batch_size=8, augment=True)


class TestItems:
    @pytest.fixture
    def parts(self) -> list[TensorDataset]:
        return [pictures(11), pictures(13, shift=2)]

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_items_give_the_results_of_tensors(self, parts: list[TensorDataset], num_workers: int) -> None:
        def passes(first: object, second: object) -> list[Pass]:
            labels = parts[1].tensors[1]
            told = DataPart(second, labels=lambda epoch: labels.add(epoch) % 3)
            return [Pass([DataPart(first, augment=False), told])]

        model, before = conv_net(dropout=0.5), torch.get_rng_state()
        expected = copy.deepcopy(model)
        fit(expected, passes(*parts), RECIPE)
        for first, second in ((Items, Items), (Items, None), (None, Items)):
            other = copy.deepcopy(model)
            read = (kind(data) if kind else data for kind, data in zip((first, second), parts, strict=True))
            fit(other, passes(*read), RECIPE, RunOptions(num_workers=num_workers))
            assert equal(other, expected)
            assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_random_transforms_follow_from_the_seed(self, parts: list[TensorDataset], num_workers: int) -> None:
        model, results, states = conv_net(), [], []
        for seed in (1, 1, 2):
            torch.rand(len(results))  # the caller's state is another each time
            states.append(torch.get_rng_state())
            results.append(copy.deepcopy(model))
            run = RunOptions(seed=seed, num_workers=num_workers)
            fit(results[-1], [Pass([DataPart(Noisy(parts[0]))])], RECIPE, run)
            assert torch.equal(torch.get_rng_state(), states[-1])
        assert equal(results[0], results[1])
        assert not equal(results[0], results[2])
        assert not torch.equal(states[1], states[2])

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_transforms_are_drawn_in_every_epoch(self, num_workers: int) -> None:
        model, data = linear_net(), part(6).data
        seen = inputs_of(model)
        data.tensors[0].fill_(1.0)
        fit(model, [Pass([DataPart(Noisy(data))])], Recipe(2, 0.1), RunOptions(num_workers=num_workers))
        assert len({tuple(image.flatten().tolist()) for batch in seen for image in batch}) == 12

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_items_of_several_types_in_a_batch(self, num_workers: int) -> None:
        """Each item is cast for itself, not to the type of the first of its batch, which may be shorter."""
        images, labels = torch.rand(12, 1, 3, 4, dtype=torch.float64), torch.randint(0, 3, (12,))
        model = linear_net().double()
        other = copy.deepcopy(model)
        first, second = TensorDataset(images[:6].half(), labels[:6]), TensorDataset(images[6:], labels[6:].byte())
        recipe = Recipe(2, 0.1, batch_size=5)
        fit(model, [Pass([DataPart(first), DataPart(second)])], recipe)
        fit(other, [Pass([DataPart(Items(first)), DataPart(second)])], recipe, RunOptions(num_workers=num_workers))
        assert equal(other, model)

    def test_a_subclass_of_tensor_dataset_may_change_items(self) -> None:
        model = linear_net()
        seen = inputs_of(model)
        fit(model, [Pass([DataPart(Brighter(*part().data.tensors))])], Recipe(1, 0.1))
        assert torch.cat(seen).min() >= 5

    def test_errors_of_the_dataset_are_raised(self) -> None:
        class Broken(Items):
            def __getitem__(self, index: int) -> tuple[Tensor, int]:
                if index == 7:
                    raise OSError("image 7 cannot be read")
                return super().__getitem__(index)

        model = linear_net()
        with pytest.raises(OSError, match="image 7 cannot be read"):
            fit(model, [Pass([DataPart(Broken(part().data))])], Recipe(1, 0.1))
        assert all(each.grad is None for each in model.parameters())


class TestParts:
    def test_an_empty_part(self) -> None:
        data, empty = part(), TensorDataset(torch.rand(0, 1, 3, 4), torch.zeros(0, dtype=torch.long))
        first = linear_net()
        second = copy.deepcopy(first)
        fit(first, [Pass([data])], Recipe(2, 0.1, batch_size=8))
        told = DataPart(empty, labels=lambda epoch: torch.zeros(0, dtype=torch.long))
        fit(second, [Pass([told, DataPart(Items(empty)), data])], Recipe(2, 0.1, batch_size=8))
        assert equal(first, second)
        for passes in ([], [Pass([data]), Pass([DataPart(empty)])]):
            with pytest.raises(InputError, match=r"^parts must be at least one"):
                fit(linear_net(), passes, Recipe(1, 0.1))
        with pytest.raises(InputError, match=r"^passes\[0\] must be a Pass"):
            fit(linear_net(), [data], Recipe(1, 0.1))

    @pytest.mark.parametrize(("dtype", "kind"), [(torch.float32, Items), (torch.float64, lambda data: data)])
    def test_soft_labels_against_a_plain_loop(self, dtype: torch.dtype, kind) -> None:
        """A full batch of samples with labels (weight 1) and of samples with targets, whose rows sum to 2."""
        model, hard, soft = linear_net().to(dtype), part(12), part(8)
        expected = copy.deepcopy(model)
        optimizer = torch.optim.SGD(expected.parameters(), lr=0.3, momentum=0.9, weight_decay=5e-4)
        targets = 2 * torch.linspace(-1, 1, 24).view(8, 3).softmax(1)
        images, labels = (torch.cat(pair) for pair in zip(hard.data.tensors, soft.data.tensors, strict=True))
        for _ in range(2):
            optimizer.zero_grad()
            logits = expected(images.to(dtype))
            loss = nn.functional.cross_entropy(logits[:12], labels[:12], reduction="sum")
            loss = loss - (targets * logits[12:].log_softmax(1)).sum()
            (loss / 20).backward()
            optimizer.step()
        fit(model, [Pass([hard, DataPart(kind(soft.data), targets=targets)])], Recipe(2, 0.3, batch_size=20))
        torch.testing.assert_close(model.state_dict(), expected.state_dict())

    def test_a_part_with_a_count_is_drawn_anew_in_every_epoch(self) -> None:
        whole, some = part(6), DataPart(part(20).data, count=7)
        loader, order = (
            BatchLoader([whole, some], torch.device("cpu"), torch.float32, 0),
            torch.Generator().manual_seed(3),
        )
        epochs = [torch.cat([rows for _, _, rows in loader.batches(epoch, 4, order)]) for epoch in range(2)]
        assert len(loader) == 13
        for rows in epochs:
            assert len({*rows.tolist()}) == len(rows) == 13
            assert {*range(6)} <= {*rows.tolist()}
        assert {*epochs[0].tolist()} != {*epochs[1].tolist()}
        for count in (0, 21):
            with pytest.raises(InputError, match=r"^count must be from 1 to"):
                fit(linear_net(), [Pass([DataPart(part(20).data, count=count)])], RECIPE)

    def test_a_teacher_gets_the_augmented_inputs(self) -> None:
        model, data, asked, trained_on = conv_net(), pictures(11), [], []
        model.register_forward_pre_hook(lambda module, args: trained_on.append(args[0]) if module.training else None)

        def teacher(x: Tensor, labels: Tensor) -> Tensor:
            asked.append(x)
            return nn.functional.one_hot(labels, 3)

        expected = copy.deepcopy(model)
        fit(model, [Pass([DataPart(data, targets=teacher)])], RECIPE)
        assert len(asked) == 4
        assert all(torch.equal(*pair) for pair in zip(asked, trained_on, strict=True))
        fit(expected, [Pass([DataPart(data)])], RECIPE)
        torch.testing.assert_close(model.state_dict(), expected.state_dict())

    def test_a_pass_of_the_first_epochs(self) -> None:
        model, passes = linear_net(), [Pass([part(6)], epochs=1), Pass([part(9)])]
        seen: list[int] = []
        model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])) if module.training else None)
        fit(model, passes, Recipe(3, 0.1, batch_size=20))
        assert seen == [6, 9, 9, 9]
        with pytest.raises(InputError, match=r"^epochs must be None"):
            fit(model, passes[:1], Recipe(3, 0.1))

    def test_bad_targets_and_labels(self) -> None:
        data, labels = part(4).data, torch.zeros(4, dtype=torch.long)
        wrong = [torch.ones(3, 3), torch.ones(4), labels, [[1.0]] * 4, torch.full((4, 3), torch.nan), torch.ones(4, 2)]
        parts = [("targets", {"targets": targets}) for targets in wrong]
        parts += [("targets", {"targets": torch.ones(4, 3), "labels": lambda epoch: labels})]
        parts += [
            ("labels", {"labels": lambda epoch, given=given: given}) for given in (labels[:3], labels.float(), [0] * 4)
        ]
        for name, options in parts:
            with pytest.raises(InputError, match=f"^{name} must be"):
                fit(linear_net(), [Pass([DataPart(data, **options)])], Recipe(1, 0.1))

    def test_bad_data(self) -> None:
        images, labels = part(4).data.tensors
        for data, message in (
            (TensorDataset(images), "parts must be of inputs and labels, got 1 tensors"),
            (TensorDataset(images, labels.float()), "labels must be integers"),
            (TensorDataset(images, -1 - labels), "labels must be not negative"),
            (TensorDataset(images[:, :, :2], labels), "parts must be of inputs of one shape"),
        ):
            with pytest.raises(InputError, match=f"^{message}"):
                fit(linear_net(), [Pass([part(4)]), Pass([DataPart(data)])], Recipe(1, 0.1))
