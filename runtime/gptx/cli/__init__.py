"""The command `gptx`: a table of verbs.

A verb's module is imported when the verb is called. So `gptx run` starts without torch, and a verb
whose packages are missing says which to install.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import warnings
from typing import Any

import click
from click.shell_completion import CompletionItem

from gptx.cli.output import fail, set_up_streams, write_out
from gptx.errors import GptxError, GptxWarning

VERBS = {
    # verb: (module:command, line of --help)
    "import": (
        "gptx_models.cli.import_checkpoint:import_",
        "Hugging Face, GGUF, nanoGPT or llama2.c weights -> checkpoint folder.",
    ),
    "train": ("gptx_models.cli.train:train", "Text -> checkpoint folder."),
    "finetune": (
        "gptx_models.cli.finetune:finetune",
        "Checkpoint and examples -> checkpoint or LoRA adapter.",
    ),
    "merge": (
        "gptx_models.adapters.merge:command",
        "LoRA adapter and its base -> checkpoint folder.",
    ),
    "export": (
        "gpt_export.cli.export:export",
        "Checkpoint folder -> ONNX artifact, parity proved.",
    ),
    "quantize": (
        "gpt_export.cli.quantize:quantize",
        "Artifact -> int8, int4 or fp16 artifact, parity proved.",
    ),
    "upgrade": (
        "gpt_export.cli.upgrade:upgrade",
        "Add the graph of gptx's native operators to an older artifact.",
    ),
    "compile": (
        "gptx.cli.compile:compile_",
        "Artifact -> the same artifact, which opens faster.",
    ),
    "run": ("gptx.cli.run:run", "Generate text."),
    "classify": ("gptx.cli.tasks:classify", "Choose the label that fits a text."),
    "summarize": ("gptx.cli.tasks:summarize", "Summarize a text."),
    "score": ("gptx.cli.tasks:score", "Print the log-probability of each token of a text."),
    "chat": ("gptx.cli.chat:chat", "Talk with a chat model in the terminal."),
    "verify": ("gptx.cli.verify:verify", "Prove an artifact's certificate again on this machine."),
    "bench": (
        "gptx.cli.bench:bench",
        "Measure speed, memory and quality, also of other engines.",
    ),
    "inspect": ("gptx.cli.inspect:inspect", "Describe an artifact or a checkpoint."),
    "doctor": ("gptx.cli.doctor:doctor", "Check this machine: versions, providers, conflicts."),
    "completion": ("gptx.cli.completion:completion", "Print the shell's completion script."),
}


class Verbs(click.Group):
    """The group of verbs. It imports a verb's module when the verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, name = VERBS[cmd_name][0].split(":")
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            message = _missing(cmd_name, error)
            return click.Command(
                cmd_name,
                callback=lambda: _fail(message),
                add_help_option=False,
                context_settings=_ANY,
            )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        verbs = [
            CompletionItem(verb, help=text)
            for verb, (_, text) in VERBS.items()
            if verb.startswith(incomplete)
        ]
        # click.Group's own completion would import every verb.
        return verbs + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> object:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # at exit Python would print a traceback for a closed pipe
            return result
        except Exception as error:
            # An extension module that is being loaded turns _end's SystemExit into ImportError.
            if _received:
                sys.exit(128 + _received[0])
            if isinstance(error, ModuleNotFoundError):  # an import while the verb ran
                raise GptxError(_missing(ctx.invoked_subcommand or "", error)) from error
            if isinstance(error, BrokenPipeError):
                raise _ClosedPipe from error  # click would exit with status 1
            raise


_received: list[int] = []  # signals that asked this process to end


def _end(number: int, _: object) -> None:
    """Handle a signal by SystemExit, so that unfinished files are removed on the way out."""
    _received.append(number)
    sys.exit(128 + number)


class _ClosedPipe(Exception):
    """The reader of standard output has closed the pipe."""


def _missing(verb: str, error: ModuleNotFoundError) -> str:
    """The message that names the package that `verb` lacks, and the command that installs it.

    Raises `error` again if the missing module is one of gptx's own.
    """
    from gptx.install import pip_command

    package = (error.name or "").split(".")[0]
    if package in ("gptx", "") or (error.name or "").startswith(("gpt_export.", "gptx_models.")):
        raise error
    extra = "cpu" if VERBS.get(verb, ("gptx.",))[0].startswith("gptx.") else "export"
    return f"gptx {verb} needs the package {package}, which is not installed: {pip_command(extra)}"


_ANY = {"ignore_unknown_options": True, "allow_extra_args": True}


def _fail(message: str) -> None:
    raise GptxError(message)


def _show_warning(message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Show a GptxWarning as one line, like an error; leave other warnings to Python."""
    if issubclass(category, GptxWarning):
        fail(str(message))
    else:
        _python_shows(message, category, *place)


_python_shows = warnings.showwarning


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from gptx.doctor import version_line

        write_out(f"{version_line()}\n")
        ctx.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print versions and processor.",
)
def group() -> None:
    """Train, export, quantize and run GPT models on this machine.

    Begin with: gptx run "Once upon a time"
    """


def main() -> None:
    """Run the verb of the command line and exit.

    A GptxError becomes one line and exit status 1, a wrong option one line and status 2, Ctrl-C
    status 130. A closed pipe ends the command silently, with status 0.
    """
    # Streams that were closed before the start are None.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    set_up_streams()
    warnings.showwarning = _show_warning
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None)):
        # Under nohup SIGHUP is ignored, and stays so.
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    try:
        # windows_expand_args: a * in a prompt is not a pattern of file names.
        status = group.main(prog_name="gptx", standalone_mode=False, windows_expand_args=False)
        # click returns the status that ctx.exit() was given.
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        verb = error.ctx.command_path if error.ctx else "gptx"
        # click puts the values of a choice on lines of their own.
        message = " ".join(error.format_message().split())
        fail(f"{message.rstrip('.')} (see {verb} --help)")
        sys.exit(error.exit_code)
    except click.ClickException as error:
        fail(error.format_message())
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        fail("interrupted")
        sys.exit(130)
    except (_ClosedPipe, BrokenPipeError):
        # Python flushes at exit, and would complain about the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except GptxError as error:
        fail(str(error))
        sys.exit(1)
    except OSError as error:  # a full disk, for example while click prints --help
        where = (
            f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, str | bytes) else ""
        )
        fail(f"{error.strerror or error}{where}")
        sys.exit(1)
