"""`--config`: a training under a difference of configurations, and what a trained tokenizer cannot become."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nextscale.commands.main import main
from nextscale.commands.train import TrainTransformer
from nextscale.errors import ModelError
from nextscale.model.checkpoint import save_folder
from nextscale.model.config import FusionConfig, ModelConfig, RestorerConfig, StemConfig
from nextscale.model.restorer import Restorer
from nextscale.model.tokenizer import Tokenizer
from nextscale.train.plan import count
from nextscale.upscale.nextscale import NextScale, read_restorer
from reproduce.tables import FlatBaseline
from tests.conftest import restoring_model, small_config

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
ABLATIONS = ROOT / "runs" / "ablations"
DATA = ["--data", str(ROOT / "examples"), "--steps", "1", "--batch", "1", "--no-bf16"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextscale.commands.train.PRESETS", {"tiny": small_config})


@pytest.fixture(scope="module")
def tokenizer(model: NextScale, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.tokenizer.save_pretrained(tmp_path_factory.mktemp("tokenizer"))


def save_restorer(folder: Path, sizes: RestorerConfig) -> Path:
    folder.mkdir()
    save_folder(folder, "restorer", sizes, Restorer(sizes).state_dict())
    return folder


def difference(folder: Path, content: Any) -> str:
    file = folder / "difference.json"
    file.write_text(json.dumps(content))
    return str(file)


def test_a_transformer_of_flat_codes_is_a_baseline_of_its_tokenizer(
    tokenizer: Path, model: NextScale, tmp_path: Path
) -> None:
    words = ["--tokenizer", str(tokenizer), "--config", str(ABLATIONS / "one-stage.json"), "--codes.sides", "64"]
    assert main(["train", "transformer", *DATA, *words, "--out", str(tmp_path)]) == 0
    flat = NextScale.from_pretrained(tmp_path / "model", device="cpu", fp32=True)
    assert flat.tokenizer.ladder.num_stages == 1
    assert FlatBaseline(flat, model.tokenizer, "baseline").name == "baseline"


def test_decoders_train_on_fewer_stages_of_a_trained_tokenizer(tokenizer: Path, tmp_path: Path) -> None:
    plain = ["--reconstruction.feature", "0", "--reconstruction.lpips", "0", "--phase", "decoders"]
    two = difference(tmp_path, {"tokenizer": {"ladder": {"stage_ends": [6, 10]}}})
    words = ["--start", str(tokenizer), "--config", two]
    assert main(["train", "tokenizer", *DATA, *plain, *words, "--out", str(tmp_path)]) == 0
    trained = Tokenizer.from_pretrained(tmp_path / "model")
    assert trained.ladder.canvases == (16, 32)
    assert len(trained.decoders) == 2


def test_a_trained_tokenizer_changes_its_ladder_only(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train",
        "tokenizer",
        *DATA,
        "--phase",
        "codebook",
        "--start",
        str(tokenizer),
        "--out",
        str(tmp_path / "a"),
    ]
    assert main([*words, "--config", difference(tmp_path, {"tokenizer": {"codebook_size": 32}})]) == 2
    assert "only its ladder can change" in capsys.readouterr().err
    assert main([*words, "--config", difference(tmp_path, {"tokenizer": {"vocabulari": 32}})]) == 1
    assert "unknown key config.tokenizer.vocabulari" in capsys.readouterr().err


def test_a_started_transformer_has_its_configuration(
    tokenizer: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--tokenizer", str(tokenizer), "--start", str(model_folder), "--out", str(tmp_path / "a")]
    config = ["--config", difference(tmp_path, {"transformer": {"aligned_conditioning": False}})]
    assert main(["train", "transformer", *DATA, *words, *config]) == 2
    assert "--start brings its own configuration" in capsys.readouterr().err


def test_a_plan_sees_the_difference(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def planned(*words: str) -> str:
        base = ["train", "transformer", *DATA, "--tokenizer", str(tokenizer), "--out", str(tmp_path / "a"), "--plan"]
        assert main([*base, *words]) == 0
        return capsys.readouterr().out

    assert planned() != planned("--config", difference(tmp_path, {"transformer": {"depth": 4}}))


def test_a_plan_of_a_started_transformer_is_that_of_its_configuration(
    tokenizer: Path, model: NextScale, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = dataclasses.replace(model.config, transformer=dataclasses.replace(model.config.transformer, depth=4))
    folder = NextScale.create(deep).save_pretrained(tmp_path / "deep")
    words = ["train", "transformer", *DATA, "--tokenizer", str(tokenizer), "--out", str(tmp_path / "a"), "--plan"]
    assert main(words) == 0
    new = capsys.readouterr().out
    assert main([*words, "--start", str(folder)]) == 0
    assert capsys.readouterr().out != new


@pytest.mark.parametrize(
    "words",
    [
        ["restorer", "--restoration.presets", "rainy"],
        ["restorer", "--restoration.anchor", "1", "--restoration.anchor-presets", "rainy"],
        ["fusion", "--start", "MODEL", "--restoration.presets", "camera", "rainy"],
        ["transformer", "--tokenizer", "TOKENIZER", "--codes.presets", "rainy"],
    ],
)
def test_an_unknown_degradation_is_refused_by_name(
    words: list[str], tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {
        "MODEL": str(restoring_model(untrained=True).save_pretrained(tmp_path / "m")),
        "TOKENIZER": str(tokenizer),
    }
    run = [folders.get(word, word) for word in words] + [*DATA, "--out", str(tmp_path / "a")]
    terms = ["--restoration.lpips", "0", "--restoration.feature", "0"] if words[0] != "transformer" else []
    assert main(["train", *run, *terms]) == 2
    assert "unknown preset 'rainy' (known: x4plus, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--batch", "0"], "batch must be 1 or more, got 0"),
        (["--log-every", "0"], "log-every must be 1 or more, got 0"),
        (["--lr", "nan"], "lr must be 0 or more, got nan"),
        (["--betas", "0.9", "1"], "betas must be in [0, 1), got (0.9, 1.0)"),
        (["--betas", "0.9", "nan"], "betas must be in [0, 1), got (0.9, nan)"),
        (["--max-damaged", "2"], "max-damaged must be in [0, 1], got 2.0"),
        (["--validation.count", "0"], "count must be 1 or more, got 0"),
        (["--restoration.window", "4"], "window must be 16 or more, got 4"),
        (["--restoration.lpips-scale", "-1", "1"], "lpips-scale must be 0 or more, got (-1.0, 1.0)"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "restorer", *DATA, "--out", str(tmp_path / "a"), *words]) == 2
    assert capsys.readouterr().err == f"nextscale: {complaint}\n"
    assert not (tmp_path / "a").exists()


def test_restorer_and_fusion_have_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*DATA, "--out", str(tmp_path / "a"), "--plan"]
    assert main(["train", "restorer", *words]) == 0
    assert "restorer training" in capsys.readouterr().out
    assert main(["train", "restorer", *words, "--largest-convs", "13"]) == 0
    assert "x4's own layers" in capsys.readouterr().out
    model = restoring_model(untrained=True).save_pretrained(tmp_path / "model")
    assert main(["train", "fusion", *words, "--start", str(model)]) == 0
    assert "fusions" in capsys.readouterr().out
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--phase", "codebook", "--reconstruction.noise", "0.1"], "--reconstruction.noise has no effect"),
        (["--phase", "finetune-codebook", "--reconstruction.side", "128"], "--reconstruction.side has no effect"),
        (["--phase", "codebook", "--validation.count", "3"], "--validation.count has no effect"),
        (["--phase", "finetune-codebook", "--codebook.kmeans-rounds", "3"], "--codebook.kmeans-rounds has no effect"),
        (["--phase", "decoders", "--codebook.phi-lr", "0.1"], "--codebook.phi-lr has no effect"),
        (["--phase", "autoencoder", "--reconstruction.codebook"], "--reconstruction.codebook has no effect"),
        (["--phase", "decoders", "--preset", "tiny"], "--preset has no effect beside --start"),
        (["--phase", "codebook", "--sheet-every", "5"], "--sheet-every has no effect in --phase codebook"),
        (["--phase", "decoders", "--validate-every", "5"], "--validate-every has no effect in a training without"),
        (["--phase", "decoders", "--validation.count", "3"], "--validation.count has no effect in a training without"),
        (["--phase", "decoders", "--machine.device", "h100"], "--machine.device has no effect in a training without"),
    ],
)
def test_options_without_effect_are_refused_by_name(
    words: list[str], option: str, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["train", "tokenizer", *DATA, "--start", str(tokenizer), "--out", str(tmp_path / "a")]
    assert main([*base, *words]) == 2
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["fusion", "--start", "nowhere"],
        ["tokenizer", "--phase", "codebook", "--start", "TOKENIZER"],
        ["tokenizer", "--phase", "finetune-codebook", "--start", "TOKENIZER"],
        ["transformer", "--tokenizer", "TOKENIZER", "--codes.latent-steps", "5"],
    ],
)
def test_trainings_that_need_whole_weights_refuse_to_shard_them(
    words: list[str], tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [str(tokenizer) if word == "TOKENIZER" else word for word in words]
    assert main(["train", *run, *DATA, "--out", str(tmp_path / "a"), "--parallel", "fsdp"]) == 2
    assert "needs whole weights in every process; leave out --parallel fsdp\n" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_plan_refuses_what_the_training_refuses(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow, wide = (
        str(save_restorer(tmp_path / str(channels), RestorerConfig(channels=channels, convs=1))) for channels in (8, 16)
    )
    other = difference(tmp_path, {"tokenizer": {"codebook_size": 32}})
    base = small_config()
    reading = dataclasses.replace(
        base.transformer, condition="restorer", prefix=False, stem=StemConfig(features=8, channels=8)
    )
    part = dataclasses.replace(base.tokenizer, fusion=None)
    sizes = RestorerConfig(channels=8, convs=2)
    start = str(
        NextScale.create(ModelConfig(part, reading, sizes, FusionConfig(8, 1, 8))).save_pretrained(tmp_path / "m")
    )
    plan = ["--out", str(tmp_path / "a"), "--plan"]
    new, started = (
        ["transformer", "--tokenizer", str(tokenizer)],
        ["transformer", "--tokenizer", start, "--start", start],
    )
    for words, said in (
        ([*new, "--codes.latent", "2"], "--codes.latent has no effect"),
        (
            ["transformer", "--tokenizer", start, "--restorer", narrow],
            "--restorer has no effect in a transformer without",
        ),
        ([*new, "--config", other], "only its ladder can change"),
        (["tokenizer", "--phase", "decoders", "--start", str(tokenizer), "--config", other], "only its ladder"),
        ([*started, "--restorer", wide], "the stem reads 8 channels of features, the restorer has 16"),
    ):
        assert main(["train", *words, *DATA, *plan]) in (1, 2)
        assert said in capsys.readouterr().err
    config = TrainTransformer(
        data=(), out=tmp_path, tokenizer=Path(start), start=Path(start), restorer=Path(narrow), plan=True
    ).configuration()
    assert (config.restorer, config.transformer) == (RestorerConfig(channels=8, convs=1), reading)


def test_a_restorer_goes_on_from_that_of_a_whole_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = restoring_model(untrained=True)
    folder = whole.save_pretrained(tmp_path / "model", half=False)
    words = ["train", "restorer", *DATA, "--lr", "0", "--start", str(folder), "--out", str(tmp_path / "a")]
    words += ["--restoration.side", "16", "--restoration.workers", "0"]
    words += ["--restoration.feature", "0", "--restoration.lpips", "0"]
    assert main([*words, "--plan"]) == 0
    assert whole.restorer is not None
    assert count(sum(p.numel() for p in whole.restorer.parameters())) in capsys.readouterr().out
    assert main(words) == 0
    trained = read_restorer(tmp_path / "a" / "model")
    assert all(torch.equal(t, whole.restorer.state_dict()[name]) for name, t in trained.state_dict().items())
    own_words = [*words[:-1], "0", "--largest-convs", "1", "--precleaned", "0.25", "--out", str(tmp_path / "own")]
    own_words += ["--refined-channels", "4", "--refined-blocks", "1", "--largest-blocks", "1"]
    assert main([*own_words, "--plan"]) == 0
    assert main(own_words) == 0
    own = read_restorer(tmp_path / "own" / "model")
    last = f"body.{2 * own.config.convs}.weight"
    assert (own.config.largest_convs, whole.restorer.config.largest_convs) == (1, 0)
    assert own.config.precleaned == 0.25
    # A plan refuses what its training would.
    for plan in ([], ["--plan"]):
        again = ["--start", str(tmp_path / "own" / "model"), "--out", str(tmp_path / "again"), "--largest-blocks", "1"]
        assert main([*words, *again, *plan]) == 2
        assert "has 1 blocks of its own already" in capsys.readouterr().err
    assert (own.config.refined_channels, own.config.refined_blocks, own.config.largest_blocks) == (4, 1, 1)
    # An anchor holds the pictures of what is started from, or of another.
    kept = [*words, "--restoration.anchor", "1", "--restoration.anchor-presets", "camera"]
    assert main([*kept, "--out", str(tmp_path / "kept")]) == 0
    assert main([*kept, "--out", str(tmp_path / "other"), "--anchored", str(tmp_path / "own" / "model")]) == 0
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines()[-1] for name in ("kept", "other")]
    assert json.loads(logs[0])["anchor"] == 0 < json.loads(logs[1])["anchor"]
    assert torch.equal(own.state_dict()["largest.0.weight"], whole.restorer.state_dict()[last])


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["restorer", "--restoration.anchor-presets", "camera"], "--restoration.anchor-presets has no effect in a"),
        (["restorer", "--restoration.anchor-share", "0.5"], "--restoration.anchor-share has no effect in a"),
        (["restorer", "--anchored", "tiny"], "--anchored has no effect in a"),
        (["restorer", "--refined-blocks", "3"], "--refined-blocks has no effect without --refined-channels"),
        (["fusion", "--start", "m", "--restoration.anchor-presets", "camera"], "--restoration.anchor-presets has no"),
        (["transformer", "--tokenizer", "tiny", "--codes.sides"], "sides must be one number or more, got ()"),
    ],
)
def test_options_that_say_nothing_are_refused(
    words: list[str], option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", words[0], *DATA, "--out", str(tmp_path / "a"), *words[1:]]) == 2
    assert option in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_training_computes_in_whole_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert main(["train", "restorer", *DATA, "--out", str(tmp_path / "a"), "--plan"]) == 0
    assert not torch.backends.cudnn.allow_tf32


def test_another_restorer_leaves_the_expected_error(tmp_path: Path) -> None:
    whole = restoring_model(untrained=False)
    folder = whole.save_pretrained(tmp_path / "model", half=False)
    torch.manual_seed(5)
    other = Restorer(whole.restorer.config)  # type: ignore[union-attr]
    save_folder(tmp_path / "other", "restorer", other.config, other.state_dict())
    words = ["train", "fusion", *DATA, "--lr", "0", "--start", str(folder), "--restorer", str(tmp_path / "other")]
    words += ["--restoration.side", "64", "--restoration.workers", "0", "--restoration.feature", "0"]
    assert main([*words, "--restoration.lpips", "0", "--out", str(tmp_path / "a")]) == 0
    made = NextScale.from_pretrained(tmp_path / "a" / "model", device="cpu", fp32=True).state_dict()
    before = whole.state_dict()
    names = [name for name in made if name.startswith("fusions.")]
    assert {name for name in names if ".error_" in name and torch.equal(made[name], before[name])} == {
        name for name in names if ".error_" in name
    }
    assert torch.equal(made["fusions.2.head.weight"], other.state_dict()["heads.2.weight"])
    assert not made["fusions.0.blocks.0.conv2.weight"].any()  # the rest starts as nothing


def test_a_preset_beside_a_started_transformer_is_refused(
    tokenizer: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--tokenizer", str(tokenizer), "--start", str(model_folder), "--out", str(tmp_path / "a")]
    assert main(["train", "transformer", *DATA, *words, "--preset", "tiny"]) == 2
    assert "--preset has no effect beside --start" in capsys.readouterr().err


def test_the_tokenizer_of_a_whole_model_is_one(model: NextScale, model_folder: Path, tmp_path: Path) -> None:
    found = Tokenizer.from_pretrained(model_folder)
    assert found.config == model.tokenizer.config
    assert all(torch.equal(t, model.tokenizer.state_dict()[name]) for name, t in found.state_dict().items())
    words = ["--tokenizer", str(model_folder), "--codes.sides", "64", "--out", str(tmp_path)]
    assert main(["train", "transformer", *DATA, *words]) == 0
    assert (tmp_path / "model" / "config.json").is_file()


def test_a_shipped_name_and_a_hub_id_name_a_tokenizer(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Tokenizer.from_pretrained("tiny").config.codebook_size == 4096
    monkeypatch.setattr("nextscale.model.checkpoint._download", lambda name: {"owner/name": model_folder}[name])
    assert Tokenizer.from_pretrained("owner/name").config.codebook_size == 64


def test_a_transformer_is_no_tokenizer(tmp_path: Path, model: NextScale) -> None:
    save_folder(tmp_path, "transformer", model.config, model.transformer.state_dict())
    with pytest.raises(ModelError, match="holds a transformer, a tokenizer is needed"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_tokenizer_is_no_restorer(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "restorer", *DATA, "--start", str(tokenizer), "--out", str(tmp_path / "a")]) == 1
    said = f"nextscale: {tokenizer}: holds a tokenizer; name a restorer, or a model that has one\n"
    assert capsys.readouterr().err == said


def test_decoders_know_no_denoise_dial(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "fusion", *DATA, "--start", str(model_folder), "--out", str(tmp_path / "a"), "--plan"]
    assert main([*words, "--part", "decoders", "--restoration.grain", "0.1"]) == 2
    assert "--restoration.grain has no effect in --part decoders" in capsys.readouterr().err
    assert main([*words, "--part", "decoders"]) == 0
    assert main(words) == 2
    assert "has no restorer" in capsys.readouterr().err
