"""The critic learns, moves only the pictures, and resumes with its run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.data.crops import Crops
from nextscale.train import adversarial
from nextscale.train.adversarial import Adversary
from nextscale.train.config import LoopConfig, ReconstructionConfig
from nextscale.train.loop import train
from nextscale.train.tasks import reconstruction as trainings
from nextscale.train.tasks.reconstruction import ReconstructionTask
from tests.conftest import random_model

EXAMPLES = Path(__file__).parents[2] / "examples"


class RandomFeatures(nn.Module):
    """Stands for VGG19, whose weights a fresh clone does not have: activation maps of the same shapes."""

    def __init__(self, layers: tuple[str, ...]) -> None:
        super().__init__()
        assert layers == ("conv1_2", "conv2_2", "conv3_1")
        generator = torch.Generator().manual_seed(5)
        self.kernels = [torch.randn(c, 3, 1, 1, generator=generator) for c in (64, 128, 256)]

    def forward(self, picture: Tensor) -> list[Tensor]:
        sizes = [F.avg_pool2d(picture, k) for k in (1, 2, 4)]
        return [F.relu(F.conv2d(x, kernel)) for x, kernel in zip(sizes, self.kernels, strict=True)]


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    crops = Crops([str(EXAMPLES)], 64)
    return torch.from_numpy(crops.batch(0, 4)).float() / 127.5 - 1


def rippled(pictures: Tensor) -> Tensor:
    place = torch.arange(pictures.shape[-1])
    return pictures + 0.3 * ((place[:, None] + place) % 2 * 2 - 1)


@pytest.mark.integration
def test_the_critic_learns_to_tell_rippled_pictures_and_leads_away_from_them(photographs: Tensor) -> None:
    features = RandomFeatures(("conv1_2", "conv2_2", "conv3_1"))
    adversary = Adversary(2, (64, 128, 256), 2e-3, photographs.device)
    made = rippled(photographs)
    log = []
    for _ in range(40):
        adversary.keep(1, features(made), features(photographs))
        log.append(adversary.step())
    assert log[-1]["d_loss_2"] < 0.8 * log[0]["d_loss_2"]
    assert log[-1]["d_accuracy_2"] > 0.8
    maps = [x.requires_grad_() for x in features(made)]
    term, value = adversary.generator_loss(1, maps)
    slopes = torch.autograd.grad(term, maps)
    better = [x.detach() - 0.1 * x.detach().std() * g / g.std() for x, g in zip(maps, slopes, strict=True)]
    assert adversary.generator_loss(1, better)[1] < value


def test_the_generator_loss_moves_the_pictures_and_never_the_critic(photographs: Tensor) -> None:
    adversary = Adversary(1, (64, 128, 256), 1e-3, photographs.device)
    features = RandomFeatures(("conv1_2", "conv2_2", "conv3_1"))
    made = rippled(photographs).requires_grad_(True)
    term, _ = adversary.generator_loss(0, features(made))
    term.backward()  # type: ignore[no-untyped-call]
    assert made.grad is not None
    assert float(made.grad.abs().sum()) > 0
    assert all(p.grad is None for p in adversary.critics.parameters())


def test_the_critics_gradient_is_as_large_as_that_of_the_feature_difference_however_sure_it_is(
    photographs: Tensor,
) -> None:
    adversary = Adversary(1, (64, 128, 256), 1e-3, photographs.device)
    features = RandomFeatures(("conv1_2", "conv2_2", "conv3_1"))
    maps = [x.requires_grad_() for x in features(photographs)]
    others = [x.detach() + 1 for x in maps]
    difference = torch.stack([(a - b).abs().mean() for a, b in zip(maps, others, strict=True)]).mean()
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(difference, maps)]).norm()
    for factor in (1.0, 100.0):
        with torch.no_grad():
            for parameter in adversary.critics.parameters():
                parameter.mul_(factor)
        term, _ = adversary.generator_loss(0, maps)
        found = torch.cat([g.flatten() for g in torch.autograd.grad(term, maps)]).norm()
        assert float(found) == pytest.approx(float(wanted), rel=1e-2)


def test_a_step_over_accumulated_batches_is_one_over_their_mean(photographs: Tensor) -> None:
    features = RandomFeatures(("conv1_2", "conv2_2", "conv3_1"))
    made, real = features(rippled(photographs)), features(photographs)
    whole, parts = (Adversary(1, (64, 128, 256), 1e-3, photographs.device) for _ in range(2))
    whole.keep(0, made, real)
    for half in (slice(0, 2), slice(2, 4)):
        parts.keep(0, [x[half] for x in made], [x[half] for x in real])
    assert parts.step() == pytest.approx(whole.step(), rel=1e-5)
    assert not parts.waiting


def test_a_process_that_saw_only_ramps_enters_the_sums_of_the_others(
    photographs: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = RandomFeatures(("conv1_2", "conv2_2", "conv3_1"))
    made, real = features(rippled(photographs)), features(photographs)
    entered: dict[str, list[list[int]]] = {"busy": [], "idle": []}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(adversarial, "any_process", lambda *_: [False, True])
    weights = []
    for process, numbers in entered.items():

        def summed(tensor: Tensor, numbers: list[list[int]] = numbers, share: int = process == "busy") -> Tensor:
            numbers.append(list(tensor.shape))
            if tensor.shape == (2,):  # the accuracies of the two stages
                return tensor + torch.tensor([0.5, 0.7])
            assert share or not tensor.any()
            return torch.ones_like(tensor)  # what both processes would get

        monkeypatch.setattr(adversarial, "summed", summed)
        adversary = Adversary(2, (64, 128, 256), 1e-3, photographs.device)
        if process == "busy":
            adversary.keep(1, made, real)
        adversary.step()
        weights.append(adversary.critics.state_dict())
    assert entered["idle"] == entered["busy"] == [*(list(p.shape) for p in adversary.critics[1].parameters()), [2]]
    assert adversary.accuracies == pytest.approx([0.5, 0.6])  # of the idle one, which came last
    assert all(torch.equal(weights[0][name], weight) for name, weight in weights[1].items())


def test_only_the_wanted_stages_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainings, "Vgg19Features", RandomFeatures)
    config = ReconstructionConfig(feature=0, lpips=0, unquantized_prob=1.0, adversarial=0.1, disc_start_stage=3)
    task = ReconstructionTask(random_model().tokenizer, Crops([str(EXAMPLES)], 256), config)
    _, numbers = task.losses(0, 1)
    assert "g_loss_3" in numbers
    assert "g_loss_2" not in numbers
    assert task.adversary is not None
    learned = task.adversary.step()
    assert set(learned) == {"d_loss_3", "d_accuracy_3"}


@pytest.mark.integration
def test_a_resumed_run_goes_on_with_the_same_critic_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainings, "Vgg19Features", RandomFeatures)
    config = ReconstructionConfig(feature=0, lpips=0, unquantized_prob=1.0, adversarial=0.5)
    loop = LoopConfig(steps=2, batch=1, warmup=1, bf16=False, ema=0.5, save_minutes=0)

    def run(folder: str, steps: int) -> dict[str, Tensor]:
        task = ReconstructionTask(random_model().tokenizer, Crops([str(EXAMPLES)], 256), config)
        train(task, dataclasses.replace(loop, steps=steps, schedule="linear", final_lr=1.0), tmp_path / folder)
        assert task.adversary is not None
        return {**task.model.state_dict(), **task.adversary.critics.state_dict()}

    whole = run("whole", 2)
    run("parts", 1)
    state = torch.load(tmp_path / "parts" / "state.pt")
    again = run("parts", 2)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    # States of earlier versions keep the critic's state as the task's.
    torch.save(state | {"task": state.pop("critic")}, tmp_path / "parts" / "state.pt")
    again = run("parts", 2)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
