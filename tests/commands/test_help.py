"""Help texts name no internals."""

from __future__ import annotations

import re
from typing import Any

import pytest

from nextscale.commands.main import main

LEAVES = [
    *("upscale", "batch", "serve", "evaluate", "degrade", "convert", "doctor", "version"),
    *("train tokenizer", "train transformer", "train restorer", "train fusion"),
    *("data pack", "data check", "data pages"),
]


def help_of(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*words.split(), "--help"])
    assert not stop.value.code
    return capsys.readouterr().out


def subcommands(words: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    return set(re.findall(r"• ([a-z]+) ", help_of(words, capsys)))


@pytest.mark.parametrize("words", LEAVES)
def test_help_names_no_internals(words: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = help_of(words, capsys)
    assert "{None}" not in text
    assert "{None," not in text
    assert not re.search(r"\bpart(\.\w+)? options", text)
    assert not re.search(r"--no-.*\(default: True\)", text)


def test_every_command_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert {words.split()[0] for words in LEAVES} == subcommands("", capsys)
    for group in ("train", "data"):
        assert {words.split()[1] for words in LEAVES if words.startswith(group)} == subcommands(group, capsys)


def test_evaluate_says_which_options_the_factors_decide(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(re.findall("Refused here", help_of("evaluate", capsys))) == 3
