"""The `nextscale` command. Torch is imported inside the commands, so that help is instant."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import tyro

from nextscale import __version__
from nextscale.commands.batch import Batch
from nextscale.commands.convert import Convert
from nextscale.commands.data import Data
from nextscale.commands.degrade import Degrade
from nextscale.commands.doctor import Doctor
from nextscale.commands.evaluate import Evaluate
from nextscale.commands.serve import Serve
from nextscale.commands.train import Train
from nextscale.commands.upscale import Upscale
from nextscale.console import complain, note, printable, say, silence_output
from nextscale.errors import NextScaleError, OptionError, check_finite


@dataclass(frozen=True)
class Version:
    """Print the version."""

    def run(self) -> int:
        say(f"nextscale {__version__}")
        return 0


Command = (
    Annotated[Upscale, tyro.conf.subcommand("upscale")]
    | Annotated[Batch, tyro.conf.subcommand("batch")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Degrade, tyro.conf.subcommand("degrade")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Version, tyro.conf.subcommand("version")]
)


EMPTY_TEXTS = frozenset({"--suffix", "--peers"})
"""Options whose value may be empty."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `nextscale` command; the exit status is 0, 1 if anything failed, or 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    description = "Restore and enlarge photographs with one visual autoregressive model and a convolutional restorer."
    return run_command(Command, "nextscale", description, ["version"] if arguments == ["--version"] else arguments)


def run_command(kind: Any, prog: str, description: str | None, arguments: list[str]) -> int:
    """Parse a command's options and run it.

    The exit status is 0, 1 if anything failed, 2 for wrong usage, or 128 and the number of the signal that ended it.

    Args:
        kind: a dataclass with a `run` method, or a union of such.
        prog: the name in its help.
        description: the first lines of its help (None: the docstring of `kind`).
    """
    try:
        _refuse_empty(arguments)
        with _escaped(arguments):
            command: Any = tyro.cli(
                kind,
                prog=prog,
                description=description,
                args=arguments,
                config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
            )
        check_finite(command)
        with _stopping():
            return int(command.run())
    except OptionError as error:
        complain(str(error))
        return 2
    except NextScaleError as error:
        complain(str(error))
        return 1
    except BrokenPipeError:
        silence_output()  # whoever read the lines has gone
        return 1
    except OSError as error:
        # What a command expects to fail it names itself; a disk or a server can fail anywhere.
        from nextscale.image.guard import one_line

        complain(f"{error.filename}: {one_line(error)}" if error.filename else one_line(error))
        return 1
    except KeyboardInterrupt as stop:
        with contextlib.suppress(BrokenPipeError):  # a terminal that closes takes its readers with it
            complain("stopped")
        return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """A signal other than that of Ctrl+C, which ends a command the same way."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end what runs inside as Ctrl+C does, so that no photograph stays in a temporary folder.

    Handlers of a program that calls a command stay, and so does `nohup`.
    """
    main_thread = threading.current_thread() is threading.main_thread()  # no other may set handlers
    own, taken = os.getpid(), []

    def stop(number: int, _: Any) -> NoReturn:
        if os.getpid() != own:  # a forked process, whose parent cleans up
            os._exit(128 + number)
        raise Stopped(number)

    try:
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if main_thread and number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, stop)
                taken.append(number)
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _refuse_empty(arguments: list[str]) -> None:
    """Refuse an empty word, as a variable of the shell that was never set gives: as a path it is the current folder.

    Here, since parsing makes the same path of it as of a dot, which may be meant.

    Raises:
        OptionError: naming the option before it, where there is one.
    """
    before = ""
    for word in arguments:
        option, equals, value = word.partition("=")
        if not (equals and word.startswith("-")):
            option, value = before, word
        before = word
        if value.lower() not in ("", "file://") or option in EMPTY_TEXTS:
            continue
        if option.startswith("-") and option != "-":
            raise OptionError(f"an empty name after {option}; give one, or leave the option out")
        raise OptionError("an empty name; name a picture or a folder")


@contextlib.contextmanager
def _escaped(arguments: list[str]) -> Iterator[None]:
    """Escape what tyro says of arguments that hold controls of the terminal, such as names that a shell put there."""
    if all(word == printable(word) for word in arguments):
        yield
        return
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    finally:
        for line in said.getvalue().splitlines():
            note(line)
