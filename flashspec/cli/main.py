"""The command line. An error is one sentence and exit status 2."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import time
from collections.abc import Sequence

import click

from flashspec.refusals import ASKED, in_words, refuse

COMMANDS = {
    "generate": ("generate:generate", "Write text with any method and say what it cost."),
    "run": ("study:run_command", "Run an experiment, or show its stored table."),
    "results": ("results:command", "List, show, compare, verify and export stored tables."),
    "sweep": ("study:sweep_command", "Run an experiment or a notebook over a grid of parameters."),
    "notebooks": ("study:notebooks_command", "Run notebooks with your own parameters."),
    "pages": ("study:pages_command", "Write the README's table and picture from stored tables."),
    "list": ("study:list_command", "List experiments, methods and models."),
    "train": ("train:train", "Train the reference models from scratch."),
    "quantize": ("train:quantize", "Quantise a checkpoint to 4 bits."),
    "fetch": ("models:fetch", "Download a published model: smollm2 or qwen."),
    "export": ("models:export", "Write any model as a Hugging Face folder or a GGUF file."),
    "heads": ("models:heads", "Build a FlashHead from text that a model writes."),
    "plan": ("plan:command", "Say whether to speculate here, and how."),
    "trace": ("generate:trace", "Record a target's text once; replay drafts against it."),
    "draft": ("train:draft", "Cut a wide, shallow draft out of a target."),
    "doctor": ("doctor:command", "Show what this machine can do, what is missing and how to get it."),
}


class Lazy(click.Group):
    """Commands imported on first use, so that `--help` loads nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, command = COMMANDS[name][0].partition(":")
        return getattr(importlib.import_module(f"flashspec.cli.{module}"), command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.command(cls=Lazy, no_args_is_help=True)
@click.version_option(package_name="flashspec", prog_name="flashspec")
def group() -> None:
    """What makes speculative decoding fast, and when does an approximate draft head pay?"""


def status(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, whose `obj` is the time of its start, and return its exit status.

    0, 1 for failed notebooks or points, or tables that differ, 2 for an error, 130.
    """
    try:
        given = None if arguments is None else list(arguments)
        return group.main(args=given, prog_name="flashspec", standalone_mode=False, obj=time.perf_counter()) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # which click takes for an interrupt
            return refuse(in_words(error.__cause__))
        print("stopped", file=sys.stderr)
        return 130
    except click.UsageError as error:
        said = error.format_message().rstrip(".")
        return refuse(f"{said}; see {error.ctx.command_path if error.ctx else 'flashspec'} --help")
    except click.ClickException as error:
        return refuse(error.format_message())
    except Exception as error:
        if os.environ.get(ASKED):
            raise
        return refuse(in_words(error))


def main() -> None:
    """The console script; a closed standard stream is empty, and output replaces characters that its encoding lacks."""
    gc.set_threshold(50_000, 20, 50)  # imports and vocabularies make objects by the million
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    done = status()
    try:
        sys.stdout.flush()
    except OSError as error:  # the reader has gone, or the disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        done = done if isinstance(error, BrokenPipeError) else refuse(in_words(error))
    sys.exit(done)


if __name__ == "__main__":
    main()
