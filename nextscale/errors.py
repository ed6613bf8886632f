"""The errors a user can cause. Each becomes one line on stderr: what, which file, and the remedy."""

from __future__ import annotations


class NextScaleError(Exception):
    """A mistake or a mishap outside the program (a bad file, a wrong option, a full disk).

    The message is one sentence for the user that names the remedy; it never holds a traceback.
    """


class ImageError(NextScaleError):
    """A picture that cannot be read or written."""


class ModelError(NextScaleError):
    """A model folder or checkpoint that cannot be loaded, saved or converted."""


class OptionError(NextScaleError):
    """Options that contradict each other or the model."""
