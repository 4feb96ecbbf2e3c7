"""find_min_adversarial: closed forms, guarantees, hostile models and bad input."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from amun_ext import AdversarialSet, InputError, find_min_adversarial

SCALES = (0.1, 1.0, 20.0, 120.0, 1000.0)
LOSSES = ("cross_entropy", "margin")


class Linear(nn.Module):
    """Logits scale * (W x + b), whose distances to the decision boundary are known."""

    def __init__(self, classes: int, features: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, features) / features**0.5)
        # All logits meet in the middle of the box, so that every input has an example inside it.
        self.bias = nn.Parameter(-0.5 * self.weight.detach().sum(1))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x.flatten(1) @ self.weight.T + self.bias)

    def distance(self, x: Tensor, labels: Tensor) -> Tensor:
        """min over j of |margin_j| / ||w_j - w_y||, without a box."""
        with torch.no_grad():
            logits = self(x) / self.scale
            margins = logits.gather(1, labels[:, None]) - logits
            lengths = (self.weight - self.weight[labels][:, None]).norm(dim=2)
            return (margins / lengths).scatter(1, labels[:, None], math.inf).amin(1)


def small_net(classes: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, classes)
    )


def trained_net(images: Tensor, labels: Tensor) -> nn.Sequential:
    """A net that is right on `images` and sure of it."""
    net = small_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@pytest.fixture
def task() -> tuple[nn.Sequential, Tensor, Tensor]:
    images, labels = torch.rand(50, 1, 6, 6), torch.randint(0, 4, (50,))
    return trained_net(images, labels), images, labels


def check_guarantees(model: nn.Module, inputs: Tensor, labels: Tensor, result: AdversarialSet) -> None:
    """What holds for every result of every search."""
    found = result.found
    with torch.no_grad():
        predicted = model(result.images).argmax(1)
    assert torch.equal(result.labels[found], predicted[found])
    assert (result.labels[found] != labels[found]).all()
    assert torch.equal(result.labels[~found], labels[~found])
    assert torch.equal(result.images[~found], inputs[~found])
    assert result.images.aminmax().min >= 0
    assert result.images.aminmax().max <= 1
    moved = (result.images.double() - inputs.double()).flatten(1).norm(dim=1)
    torch.testing.assert_close(result.distance[found].double(), moved[found], rtol=1e-4, atol=1e-6)
    assert (result.distance[found] <= result.eps[found] * (1 + 1e-4)).all()
    assert result.distance[~found].isinf().all()
    assert torch.equal(result.source_index, torch.arange(len(inputs)))
    assert torch.equal(result.true_labels, labels)


class TestClosedForm:
    @pytest.mark.parametrize("scale", SCALES)
    @pytest.mark.parametrize("classes", [2, 10])
    def test_margin_loss_is_close_to_the_true_minimum(self, scale: float, classes: int) -> None:
        model, x = Linear(classes, 100, scale), torch.rand(200, 100)
        labels = model(x).argmax(1)
        truth = model.distance(x, labels)
        result = find_min_adversarial(model, x, labels, loss="margin", bounds=(-100.0, 100.0))
        assert result.found.all()
        ratio = result.distance / truth
        assert ratio.median() <= 1.12
        assert (ratio >= 1 - 1e-4).all()
        if classes == 2:  # one boundary: the overshoot is at most a step, eps / 10
            assert (ratio[truth > 0.02] <= 1.2 + 1e-4).all()

    @pytest.mark.parametrize("scale", SCALES)
    def test_cross_entropy_in_float32_agrees_with_float64(self, scale: float) -> None:
        model, x = Linear(10, 30, scale), torch.rand(100, 30)
        labels = model(x).argmax(1)
        single = find_min_adversarial(model, x, labels, bounds=(-100.0, 100.0))
        double = find_min_adversarial(model.double(), x.double(), labels, bounds=(-100.0, 100.0))
        assert single.found.all()
        assert double.found.all()
        torch.testing.assert_close(single.distance.double(), double.distance, rtol=0.01, atol=1e-6)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_binding_box(self, loss: str) -> None:
        """Logits x_0 + 10 x_1 - 0.5 and 0, with x_1 at its lower bound: only x_0 can still fall."""
        model = Linear(2, 2)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, 10.0], [0.0, 0.0]]))
            model.bias.copy_(torch.tensor([-0.5, 0.0]))
        x, labels = torch.tensor([[0.8, 0.0]]), torch.tensor([0])
        result = find_min_adversarial(model, x, labels, loss=loss)
        check_guarantees(model, x, labels, result)
        assert result.found.all()
        assert result.images[0, 1] == 0
        assert 0.3 <= result.distance[0] <= 0.3 + 0.1 * result.eps[0]

    def test_no_example_inside_the_box(self) -> None:
        model = Linear(2, 2)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
            model.bias.copy_(torch.tensor([0.5, 0.0]))
        result = find_min_adversarial(model, torch.tensor([[0.3, 0.4]]), torch.tensor([0]))
        assert not result.found.any()
        assert torch.equal(result.images, torch.tensor([[0.3, 0.4]]))

    def test_step_count_and_radius_of_one_sample(self) -> None:
        """Distance 0.05 at eps_init 0.04: 10 steps fill the ball, 40 stay on it, the second round needs two more."""
        model = Linear(2, 1)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[-1.0], [0.0]]))
            model.bias.copy_(torch.tensor([0.55, 0.0]))
        result = find_min_adversarial(model, torch.tensor([[0.5]]), torch.tensor([0]), eps_init=0.04)
        assert result.eps.item() == pytest.approx(0.08)
        assert result.distance.item() == pytest.approx(0.056, abs=1e-5)
        assert result.grad_evals.item() == 50 + 2 + 1


class TestGuarantees:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("batch_size", [1, 7, 50, 1000])
    def test_all_found_and_as_promised(self, task, loss: str, batch_size: int) -> None:
        model, images, labels = task
        result = find_min_adversarial(model, images, labels, loss=loss, batch_size=batch_size)
        assert result.found.all()
        check_guarantees(model, images, labels, result)

    def test_does_not_depend_on_the_batch(self, task) -> None:
        model, images, labels = task
        one, many = (find_min_adversarial(model, images, labels, batch_size=size) for size in (3, 50))
        assert torch.equal(one.found, many.found)
        same = (one.labels == many.labels) & (one.eps == many.eps)
        assert same.float().mean() >= 0.99
        quantiles = torch.tensor([0.1, 0.5, 0.9])
        torch.testing.assert_close(
            one.distance.quantile(quantiles), many.distance.quantile(quantiles), rtol=0.01, atol=0
        )

    def test_is_deterministic(self, task) -> None:
        model, images, labels = task
        first, second = (find_min_adversarial(model, images, labels, batch_size=16) for _ in range(2))
        assert torch.equal(first.images, second.images)

    def test_misclassified_inputs_come_back_as_they_are(self, task) -> None:
        model, images, _ = task
        labels = (model(images).argmax(1) + 1) % 4
        result = find_min_adversarial(model, images, labels)
        assert torch.equal(result.images, images)
        assert (result.distance == 0).all()
        assert (result.eps == 0).all()
        assert (result.grad_evals == 1).all()
        assert result.found.all()

    def test_inputs_on_the_bounds(self) -> None:
        images, labels = torch.rand(50, 1, 6, 6).round(), torch.randint(0, 4, (50,))
        model = trained_net(images, labels)
        result = find_min_adversarial(model, images, labels)
        assert result.found.all()
        check_guarantees(model, images, labels, result)

    @pytest.mark.parametrize("layout", ["transposed", "channels_last", "expanded"])
    def test_layouts_of_the_inputs(self, task, layout: str) -> None:
        model, images, _ = task
        images = {
            "transposed": images.transpose(2, 3),
            "channels_last": images.contiguous(memory_format=torch.channels_last),
            "expanded": images[:1].expand(5, -1, -1, -1),
        }[layout]
        labels = model(images).argmax(1)
        result = find_min_adversarial(model, images, labels)
        plain = find_min_adversarial(model, images.contiguous(), labels)
        check_guarantees(model, images, labels, result)
        torch.testing.assert_close(result.distance, plain.distance, rtol=0.01, atol=0)

    @pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 4, 5)])
    def test_inputs_of_any_rank(self, shape: tuple[int, ...]) -> None:
        model, x = Linear(3, math.prod(shape)), torch.rand(9, *shape)
        labels = model(x).argmax(1)
        result = find_min_adversarial(model, x, labels, bounds=(-100.0, 100.0))
        assert result.found.all()
        assert result.images.shape == x.shape

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_models_of_another_dtype(self, dtype: torch.dtype) -> None:
        model, x = Linear(3, 20).to(dtype), torch.rand(40, 20).to(dtype)
        labels = model(x).argmax(1)
        result = find_min_adversarial(model, x, labels)
        assert result.images.dtype == dtype
        check = (result.images.double() - x.double()).norm(dim=1)[result.found]
        assert torch.equal(model(result.images).argmax(1)[result.found], result.labels[result.found])
        assert (result.labels != labels)[result.found].all()
        torch.testing.assert_close(result.distance[result.found].double(), check, rtol=1e-4, atol=1e-6)
        assert result.found.float().mean() > 0.9

    def test_float32_inputs_for_a_half_model(self) -> None:
        model, x = Linear(3, 20).half(), torch.rand(10, 20)
        labels = model(x.half()).argmax(1)
        result = find_min_adversarial(model, x, labels)
        assert result.images.dtype == torch.float32
        assert torch.equal(model(result.images.half()).argmax(1), result.labels)

    def test_int32_labels(self, task) -> None:
        model, images, labels = task
        assert find_min_adversarial(model, images, labels.int()).found.all()

    def test_bounds_are_read_in_the_images_dtype(self) -> None:
        """0.3 is a little less than its float32 neighbour, which the search itself returns."""
        model, x = Linear(3, 5), torch.rand(8, 5).clamp(0, 0.3)
        labels = model(x).argmax(1)
        result = find_min_adversarial(model, x, labels, bounds=(0.0, 0.3), eps_max=2.0)
        again = find_min_adversarial(
            model, result.images, model(result.images).argmax(1), bounds=(0.0, 0.3), eps_max=2.0
        )
        assert again.images.max() <= torch.tensor(0.3)

    @pytest.mark.parametrize("how", ["in place", "through .data"])
    def test_models_that_change_their_input(self, how: str) -> None:
        class Normalising(Linear):
            def forward(self, x: Tensor) -> Tensor:
                x = x.sub_(0.5) if how == "in place" else x.data.sub_(0.5) if not x.requires_grad else x.sub_(0.5)
                return super().forward(x)

        model, x = Normalising(3, 5), torch.rand(12, 5)
        kept, labels = x.clone(), model(x.clone()).argmax(1)
        result = find_min_adversarial(model, x, labels, eps_max=1.0)
        assert torch.equal(x, kept)
        assert result.images.aminmax().min >= 0
        assert torch.equal(model(result.images.clone()).argmax(1), result.labels)


class TestRefine:
    def test_linear_model_ends_on_the_boundary(self) -> None:
        model, x = Linear(2, 100), torch.rand(100, 100)
        labels = model(x).argmax(1)
        truth = model.distance(x, labels)
        result = find_min_adversarial(model, x, labels, loss="margin", bounds=(-100.0, 100.0), refine=10)
        assert result.found.all()
        far = truth > 0.02
        assert (result.distance[far] / truth[far] <= 1.02).all()

    def test_never_worse_and_still_as_promised(self, task) -> None:
        model, images, labels = task
        plain, refined = (find_min_adversarial(model, images, labels, refine=passes) for passes in (0, 6))
        check_guarantees(model, images, labels, refined)
        assert torch.equal(plain.found, refined.found)
        assert (refined.distance <= plain.distance * (1 + 1e-5)).all()
        assert refined.distance.mean() < 0.99 * plain.distance.mean()

    def test_leaves_misclassified_and_unfound_inputs_alone(self) -> None:
        model, x = Linear(2, 3), torch.rand(6, 3)
        with torch.no_grad():
            model.bias.copy_(torch.tensor([50.0, 0.0]))
        labels = torch.tensor([0, 1] * 3)
        result = find_min_adversarial(model, x, labels, refine=5)
        assert result.found.tolist() == [False, True] * 3
        assert torch.equal(result.images, x)
        assert (result.distance[1::2] == 0).all()


class TestTheModelIsLeftAsItWas:
    def test_modes_buffers_gradients_and_random_state(self) -> None:
        model = nn.Sequential(small_net(), nn.Dropout(0.5)).train()
        model[0][1].eval()  # a frozen BatchNorm
        model[0][0].weight.requires_grad_(False)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        images = torch.rand(20, 1, 6, 6)
        random = torch.get_rng_state()
        find_min_adversarial(model, images, torch.zeros(20, dtype=torch.long))
        assert torch.equal(random, torch.get_rng_state())
        assert modes == [module.training for module in model.modules()]
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert [parameter.requires_grad for parameter in model.parameters()] == [False] + [True] * 5

    def test_dropout_and_batchnorm_are_off_in_the_search(self, task) -> None:
        model, images, labels = task
        plain = find_min_adversarial(model, images, labels)
        noisy = nn.Sequential(nn.Dropout(0.5), model).train()
        torch.testing.assert_close(find_min_adversarial(noisy, images, labels).distance, plain.distance)

    def test_buffers_that_change_in_eval_mode_are_put_back(self) -> None:
        class Counting(Linear):
            def __init__(self) -> None:
                super().__init__(3, 5)
                self.register_buffer("calls", torch.zeros(()))

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                return super().forward(x)

        model = Counting()
        find_min_adversarial(model, torch.rand(4, 5), torch.zeros(4, dtype=torch.long))
        assert model.calls == 0

    def test_buffers_that_are_replaced_are_put_back_and_others_not_written_to(self) -> None:
        class Replacing(Linear):
            def __init__(self) -> None:
                super().__init__(3, 5)
                self.register_buffer("calls", torch.zeros(()))
                self.register_buffer("still", torch.ones(()))

            def forward(self, x: Tensor) -> Tensor:
                self.calls = self.calls + 1
                return super().forward(x)

        model = Replacing()
        find_min_adversarial(model, torch.rand(4, 5), torch.zeros(4, dtype=torch.long), eps_max=1.0)
        assert model.calls == 0
        assert model.still._version == 0

    def test_a_train_method_of_the_models_own_is_called(self) -> None:
        class Switching(Linear):
            def train(self, mode: bool = True) -> "Switching":
                self.mode = mode
                return super().train(mode)

        model = Switching(3, 5).train()
        find_min_adversarial(model, torch.rand(4, 5), torch.zeros(4, dtype=torch.long), eps_max=1.0)
        assert model.mode is True

    def test_a_failing_model_is_put_back_too(self) -> None:
        class Failing(Linear):
            def forward(self, x: Tensor) -> Tensor:
                if len(x) > 2:
                    raise RuntimeError("out of memory")
                return super().forward(x)

        model = Failing(3, 5).train()
        with pytest.raises(RuntimeError, match="out of memory"):
            find_min_adversarial(model, torch.rand(4, 5), torch.zeros(4, dtype=torch.long))
        assert model.training

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_callers_without_gradients(self, task, context) -> None:
        model, images, labels = task
        with context():
            result = find_min_adversarial(model, images.clone(), labels.clone())
        assert result.found.all()
        assert not result.images.requires_grad


class TestHostileModels:
    @pytest.mark.parametrize("kind", ["constant", "detached", "zero"])
    def test_no_gradient_ends_unfound(self, kind: str) -> None:
        class Flat(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.logits = nn.Parameter(torch.tensor([2.0, 1.0]))

            def forward(self, x: Tensor) -> Tensor:
                logits = self.logits.expand(len(x), 2)
                if kind == "detached":
                    return logits.detach()
                return logits + 0 * x.sum(1, keepdim=True) if kind == "zero" else logits

        x = torch.rand(5, 3)
        with pytest.warns(RuntimeWarning, match="5 of 5 samples were not found for want of a gradient"):
            result = find_min_adversarial(Flat(), x, torch.zeros(5, dtype=torch.long))
        assert not result.found.any()
        assert torch.equal(result.images, x)
        assert result.distance.isinf().all()
        assert len(result) == 0

    @pytest.mark.parametrize("what", ["logits", "gradient"])
    def test_nan_stays_with_its_sample(self, what: str) -> None:
        class Broken(Linear):
            def forward(self, x: Tensor) -> Tensor:
                bad = (x[:, :1] == 0.25).to(x.dtype)
                if what == "logits":
                    return super().forward(x) + torch.where(bad.bool(), torch.nan, 0.0)
                # sqrt has an infinite slope at 0, and 0 * inf is NaN: finite logits, NaN gradient
                return super().forward(x) + 0 * torch.sqrt(torch.where(bad.bool(), x[:, :1] - 0.25, 1.0))

        model, x = Broken(3, 4), torch.rand(6, 4) * 0.1 + 0.5
        clean = find_min_adversarial(model, x, labels := model(x).argmax(1))
        x[2, 0] = 0.25
        labels[2] = model(x)[2].argmax()  # or it might be misclassified at once, before any gradient
        with pytest.warns(RuntimeWarning, match="1 of 6 samples"):
            result = find_min_adversarial(model, x, labels)
        others = torch.arange(6) != 2
        assert not result.found[2]
        assert torch.equal(result.images[2], x[2])
        assert not result.images.isnan().any()
        assert torch.equal(result.found[others], clean.found[others])
        torch.testing.assert_close(result.distance[others], clean.distance[others])

    def test_all_logits_nan(self) -> None:
        class Nan(Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) * torch.nan

        with pytest.warns(RuntimeWarning, match="5 of 5 samples"):
            result = find_min_adversarial(Nan(3, 4), torch.rand(5, 4), torch.zeros(5, dtype=torch.long))
        assert not result.found.any()
        assert result.images.isfinite().all()

    def test_answers_that_change_do_not_pass_as_found(self) -> None:
        """With dropout that never sleeps, what was adversarial once need not be so again."""

        class Restless(Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) + 3 * torch.randn(len(x), 3)

        torch.manual_seed(0)
        model, x = Restless(3, 4), torch.rand(200, 4)
        result = find_min_adversarial(model, x, torch.zeros(200, dtype=torch.long))
        assert 0 < result.found.sum() < 200
        assert (result.labels[result.found] != 0).all()

    def test_a_clean_input_that_falls_at_the_second_look_ends(self) -> None:
        """Misclassified in a batch and right alone: the search must go on from the first radius, and end."""

        class Moody(Linear):
            def forward(self, x: Tensor) -> Tensor:
                logits = super().forward(x)
                return logits.flip(1) if x.requires_grad and len(x) == 1 and not self.settled() else logits

            calls = 0

            def settled(self) -> bool:
                Moody.calls += 1
                return Moody.calls > 1

        model, x = Moody(2, 6), torch.rand(1, 6)
        with torch.no_grad():
            labels = Linear.forward(model, x).argmax(1)
        result = find_min_adversarial(model, x, labels)
        assert result.found.all()
        assert result.distance > 0
        assert result.eps > 0

    def test_eps_max_ends_the_search(self) -> None:
        model, x = Linear(2, 3), torch.rand(10, 3)
        with torch.no_grad():
            model.bias.copy_(torch.tensor([50.0, 0.0]))
        result = find_min_adversarial(
            model, x, torch.zeros(10, dtype=torch.long), eps_init=0.1, eps_max=0.35, steps=5, bounds=(-100.0, 100.0)
        )
        assert not result.found.any()
        assert (result.grad_evals == 3 * 5 + 1).all()  # radii 0.1, 0.2 and 0.35
        torch.testing.assert_close(result.eps, torch.full((10,), 0.35))


class TestAdversarialSet:
    def test_is_a_dataset_of_what_was_found(self, task) -> None:
        model, images, labels = task
        found = find_min_adversarial(model, images, labels)
        result = dataclasses.replace(found, found=torch.arange(50) % 2 == 1)
        assert len(result) == 25
        image, label = result[3]
        assert torch.equal(image, found.images[7])
        assert label == found.labels[7]
        with pytest.raises(IndexError):
            result[25]

    def test_save_and_load(self, task, tmp_path) -> None:
        model, images, labels = task
        result = find_min_adversarial(model, images, labels)
        result.save(tmp_path / "set.safetensors")
        loaded = AdversarialSet.load(tmp_path / "set.safetensors")
        assert all(torch.equal(value, getattr(loaded, key)) for key, value in dataclasses.asdict(result).items())
        assert [path.name for path in tmp_path.iterdir()] == ["set.safetensors"]

    def test_load_refuses_other_files(self, tmp_path) -> None:
        (tmp_path / "text").write_text("not a set")
        for name in ("text", "absent"):
            with pytest.raises(InputError, match=r"path must be a file that AdversarialSet\.save wrote"):
                AdversarialSet.load(tmp_path / name)


class Pairs(Dataset):
    def __init__(self, *items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


class TestDatasets:
    def test_any_map_style_dataset(self, task) -> None:
        model, images, labels = task
        tensors = find_min_adversarial(model, images, labels)
        pairs = Pairs(*zip(images, labels.tolist(), strict=True))
        for dataset in (TensorDataset(images, labels), pairs):
            assert torch.equal(find_min_adversarial(model, dataset).images, tensors.images)


X, Y = torch.rand(4, 5), torch.zeros(4, dtype=torch.long)
BAD = {
    "not a tensor": ({"inputs": [1.0]}, "inputs must be"),
    "8-bit": ({"inputs": torch.zeros(4, 5, dtype=torch.uint8)}, "inputs must be floating point"),
    "rank": ({"inputs": torch.rand(4)}, "inputs must be a batch"),
    "empty": ({"inputs": torch.rand(0, 5), "labels": Y[:0]}, "inputs must be a non-empty batch"),
    "nan": ({"inputs": X * torch.nan}, "inputs must be free of NaN"),
    "infinite": ({"inputs": X + torch.inf}, "inputs must be finite"),
    "outside": ({"inputs": X + 1}, "inputs must be inside bounds"),
    "no labels": ({"labels": None}, "labels must be a tensor"),
    "label too large": ({"labels": Y + 3}, r"labels must be in \[0, 3\), got values from 3 to 3"),
    "label negative": ({"labels": Y - 1}, "labels must be not negative"),
    "labels float": ({"labels": Y.float()}, "labels must be integers"),
    "labels bool": ({"labels": Y.bool()}, "labels must be integers"),
    "labels count": ({"labels": Y[:3]}, r"labels must be of shape \(4,\)"),
    "labels rank": ({"labels": Y[:, None]}, r"labels must be of shape \(4,\)"),
    "labels beside a dataset": ({"inputs": TensorDataset(X, Y)}, "inputs must be a tensor"),
    "method": ({"method": "cw"}, "method must be one of"),
    "loss": ({"loss": "hinge"}, "loss must be one of"),
    "eps_init": ({"eps_init": 0}, "eps_init must be from"),
    "eps_growth": ({"eps_growth": 1}, "eps_growth must be at least"),
    "eps_max": ({"eps_max": 0.01}, "eps_max must be finite and at least"),
    "eps_max inf": ({"eps_max": math.inf}, "eps_max must be finite"),
    "eps_init nan": ({"eps_init": math.nan}, "eps_init must be from"),
    "growth that float32 rounds away": ({"eps_growth": 1 + 1e-9}, "eps_growth must be at least"),
    "steps too many": ({"steps": 2**31}, "steps must be"),
    "a bool": ({"batch_size": True}, "batch_size must be"),
    "step_fraction inf": ({"step_fraction": math.inf}, "step_fraction must be in"),
    "bounds of three": ({"bounds": (0, 1, 2)}, "bounds must be"),
    "steps": ({"steps": 0}, "steps must be"),
    "steps float": ({"steps": 2.5}, "steps must be"),
    "step_fraction": ({"step_fraction": -1}, "step_fraction must be in"),
    "refine": ({"refine": -1}, "refine must be"),
    "batch_size": ({"batch_size": 0}, "batch_size must be"),
    "bounds": ({"bounds": (1.0, 0.0)}, "bounds must be"),
    "model": ({"model": len}, "model must be an nn.Module"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_before_the_model_runs(change: dict, message: str) -> None:
    class Watched(Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Watched.calls += 1
            return super().forward(x)

    arguments = {"model": Watched(3, 5), "inputs": X, "labels": Y} | change
    with pytest.raises(InputError, match=message):
        find_min_adversarial(**arguments)
    assert Watched.calls <= 1  # one input, to learn the number of classes


@pytest.mark.parametrize(
    "answer",
    [lambda x: (x, x), lambda x: x[:, 0], lambda x: x[:, :1], lambda x: x.argmax(1, keepdim=True), lambda x: x[None]],
    ids=["tuple", "rank", "one class", "integers", "rank 3"],
)
def test_a_model_that_gives_no_logits_is_refused(answer) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor):
            return answer(x)

    with pytest.raises(InputError, match=r"model must be a map to logits \[N, K\]"):
        find_min_adversarial(Odd(), X, Y)
