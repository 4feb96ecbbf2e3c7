"""AdversarialSet: as a dataset, as a file, and on other models."""

import dataclasses

import pytest
import torch
from search_tools import Around, Linear, Task, every_method, may_run_out, trained_net
from torch import Tensor

from amun_ext import AdversarialSet, InputError, find_min_adversarial


class TestAdversarialSet:
    def test_is_a_dataset_of_the_found_examples(self, few: Task) -> None:
        model, images, labels = few
        found = find_min_adversarial(model, images, labels)
        odd = torch.arange(len(images)) % 2 == 1
        result = dataclasses.replace(found, found=odd)
        assert len(result) == odd.sum()
        image, label = result[3]
        assert torch.equal(image, found.images[7])
        assert label == found.labels[7]
        with pytest.raises(IndexError):
            result[len(result)]

    def test_save_and_load(self, few: Task, tmp_path) -> None:
        model, images, labels = few
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


class TestTransfer:
    @may_run_out
    @every_method
    def test_to_the_model_itself(self, few: Task, method) -> None:
        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method=method, eps_max=0.5, min_margin=1e-3)
        model.train()
        transfer = result.transfer(model, batch_size=7)
        assert model.training
        assert torch.equal(transfer.fooled, result.found)
        assert torch.equal(transfer.labels, result.labels)

    @may_run_out
    def test_to_another(self, few: Task) -> None:
        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method="ddn", eps_max=0.5)
        other = trained_net(images, labels)
        with torch.inference_mode():
            transfer = result.transfer(other)
        assert not transfer.labels.requires_grad
        predicted = other(result.images).argmax(1)
        assert torch.equal(transfer.labels, predicted)
        assert torch.equal(transfer.fooled, result.found & (predicted != labels))
        assert result.transfer(other.half()).labels.shape == labels.shape

    def test_a_model_that_changes_its_input_does_not_change_the_set(self, few: Task) -> None:
        class Zeroing(Around):
            def forward(self, x: Tensor) -> Tensor:
                logits = self.inner(x)
                x.zero_()
                return logits

        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method="ddn")
        kept = result.images.clone()
        assert result.transfer(Zeroing(model)).fooled.float().mean() > 0.9
        assert torch.equal(result.images, kept)

    def test_nan_counts_as_not_fooled(self, few: Task) -> None:
        class Broken(Around):
            def forward(self, x: Tensor) -> Tensor:
                return self.inner(x) * torch.nan

        model, images, labels = few
        result = find_min_adversarial(model, images, labels, method="ddn")
        transfer = result.transfer(Broken(model))
        assert not transfer.fooled.any()
        assert (transfer.labels == -1).all()

    @may_run_out
    @pytest.mark.parametrize(
        ("model", "message"),
        [(len, "model must be an nn.Module"), (Linear(2, 36), "model must be of at least 4 classes, got 2")],
        ids=["no model", "fewer classes"],
    )
    def test_refuses_other_models(self, few: Task, model, message: str) -> None:
        own, images, labels = few
        labels[0] = 3
        result = find_min_adversarial(own, images, labels, method="ddn", steps=1)
        with pytest.raises(InputError, match=message):
            result.transfer(model)
        with pytest.raises(InputError, match="batch_size must be"):
            result.transfer(own, batch_size=0)
