"""A saved model tells what it is; a hub gets all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextscale.errors import ModelError
from nextscale.upscale.card import CardFacts, model_card
from nextscale.upscale.nextscale import NextScale

FACTS = CardFacts(
    title="A test",
    data="Forty drawings, CC0.",
    license="Apache-2.0",
    metrics={"val": {"x4": {"PSNR-Y": 25.2, "LPIPS": 0.481}, "x1": {"PSNR-Y": 30.0}}},
)


@pytest.mark.integration
def test_saving_writes_a_card_and_loading_keeps_its_facts(model: NextScale, tmp_path: Path) -> None:
    folder = model.save_pretrained(tmp_path / "one", facts=FACTS)
    text = (folder / "README.md").read_text(encoding="utf-8")
    for part in (
        "Forty drawings, CC0.",
        "license: apache-2.0",
        "Intended use",
        "## Limits",
        "| val | x4 | 25.2 | 0.481 |",
    ):
        assert part in text
    assert "| val | x1 | 30 |  |" in text
    again = NextScale.from_pretrained(folder, device="cpu", fp32=True)
    assert again.facts == FACTS
    other = again.save_pretrained(tmp_path / "two")
    assert (other / "README.md").read_bytes() == (folder / "README.md").read_bytes()


def test_facts_of_0_1_are_read() -> None:
    assert CardFacts.parse('{"licence": "MIT"}', "card.json") == CardFacts(license="MIT")


def test_what_is_unknown_is_said_to_be() -> None:
    text = model_card(CardFacts(), {"parameters": "1"})
    assert text.count("Not stated by whoever saved this model.") == 2
    assert "Not measured." in text
    assert "license:" not in text


@pytest.mark.parametrize("text", ["[]", "{", '{"color": 1}', '{"metrics": {"a": {"b": {"c": "x"}}}}'])
def test_damaged_facts_are_one_line(model: NextScale, tmp_path: Path, text: str) -> None:
    folder = model.save_pretrained(tmp_path)
    (folder / "card.json").write_text(text)
    with pytest.raises(ModelError, match=r"card\.json: not the facts of a model card"):
        NextScale.from_pretrained(folder, device="cpu", fp32=True)


def test_the_shipped_card_states_data_license_and_numbers() -> None:
    facts = NextScale.from_pretrained("tiny", device="cpu", fp32=True).facts
    assert facts.license == "Apache-2.0"
    assert facts.data
    assert {factor for factors in facts.metrics.values() for factor in factors} == {"x1", "x2", "x4"}
