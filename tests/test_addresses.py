"""Claims about nextscale.addresses: what is one, and that no secret in it is shown."""

from __future__ import annotations

from nextscale.addresses import is_address, shown, store_reason


def test_names_that_are_addresses() -> None:
    assert is_address("s3://bucket/a.png")
    assert not is_address("C:/photos/a.png")
    assert not is_address("C://photos/a.png")
    assert not is_address("holiday/a.png")


def test_no_secret_is_shown() -> None:
    address = "https://me:secret@host/a@b.png?key=secret"
    assert shown(address) == "https://host/a@b.png"
    assert shown("s3://bucket/a@b.png") == "s3://bucket/a@b.png"
    assert store_reason(address, OSError(f"no {address}\nhere")) == "no https://host/a@b.png here"
    assert store_reason(address, OSError()) == "OSError"
