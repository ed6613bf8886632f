"""The model card: what a model is, what it was trained on, what it is for, how good it is and where it fails."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from nextscale.errors import ModelError
from nextscale.model.config_io import parse_json, renamed


@dataclass(frozen=True)
class CardFacts:
    """What a model's files do not tell by themselves; what is left empty is said to be unknown."""

    title: str = ""
    data: str = ""
    """What it was trained on, and under which licenses."""
    license: str = ""
    """SPDX name of the weights' license."""
    training: str = ""
    """The commands, the compute."""
    limits: str = ""
    """Where it fails, beyond what all models of this kind have in common."""
    metrics: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Set -> factor -> metric -> number, as `nextscale evaluate` measured them."""

    @classmethod
    def parse(cls, text: str, name: str) -> CardFacts:
        """The facts of a card.json.

        Raises:
            ModelError: it is damaged, or holds something else.
        """
        try:
            data = parse_json(text)
            facts = cls(**renamed(data, cls.__dataclass_fields__.keys()))
            for factors in facts.metrics.values():
                for scores in factors.values():
                    for value in scores.values():
                        float(value)
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"{name}: not the facts of a model card ({error})") from None
        return facts

    def dump(self) -> str:
        """As card.json holds them."""
        return json.dumps(asdict(self), indent=1) + "\n"


def model_card(facts: CardFacts, shape: dict[str, Any]) -> str:
    """The card in Markdown, with the front matter that model hubs read.

    Args:
        shape: lines of the table of what the model is, by name.
    """
    front = ["---", "library_name: nextscale", "pipeline_tag: image-to-image"]
    front += [f"license: {facts.license.lower()}"] if facts.license else []
    front += ["tags:", "- super-resolution", "- image-restoration", "- visual-autoregressive", "---", ""]
    unknown = "Not stated by whoever saved this model."
    parts = [
        f"# {facts.title or 'A nextscale model'}",
        "Restores a degraded photograph: one pass gives it back cleaned (x1) and super-resolved, with a map of how far "
        "off each pixel may be.",
        "```python\nfrom nextscale import NextScale\n\n"
        'NextScale.from_pretrained("THIS MODEL").upscale("photo.jpg").pil.save("photo_x4.png")\n```',
        "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in shape.items())]),
        "## Training data and licenses",
        facts.data or unknown,
        f"License of the weights: {facts.license or 'not stated'}.",
        "## Training",
        facts.training or unknown,
        "## Intended use",
        "Photographs that are small, blurred, noisy or compressed, to be looked at. Not for evidence, diagnosis, "
        "identification of persons or reading of text: details at x2 and x4 are plausible, not true, and the "
        "map of the expected error is the model's own estimate, which can be wrong.",
        "## Limits",
        "\n\n".join(
            [
                facts.limits or "None stated beyond those of all such models.",
                "Trained on photographs under synthetic degradations: drawings, scans of text and damage of another "
                "kind may come out worse than they went in. What the data lack, the model has not learned.",
            ]
        ),
        "## Metrics",
        _table(facts.metrics) or "Not measured. `nextscale evaluate -n FOLDER --bench DIR` measures them.",
    ]
    return "\n".join(front) + "\n\n".join(parts) + "\n"


def _table(metrics: dict[str, dict[str, dict[str, float]]]) -> str:
    names = list(dict.fromkeys(name for factors in metrics.values() for scores in factors.values() for name in scores))
    if not names:
        return ""
    rows = ["| set | factor | " + " | ".join(names) + " |", "| --- " * (2 + len(names)) + "|"]
    for bench, factors in metrics.items():
        for factor, scores in factors.items():
            rows.append(
                f"| {bench} | {factor} | " + " | ".join(f"{scores[n]:g}" if n in scores else "" for n in names) + " |"
            )
    return "\n".join(rows)
