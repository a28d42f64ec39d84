"""The command `gptx`: a table of verbs. A verb's module is imported only when it is called, so `gptx run` starts
without torch, and a verb whose packages are missing says which to install."""

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
    # verb: (module, what --help says)
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
    "export": ("gpt_export.cli:export", "Checkpoint folder -> ONNX artifact, parity proved."),
    "quantize": ("gpt_export.cli:quantize", "Artifact -> int8, int4 or fp16 artifact, with proof."),
    "compile": (
        "gptx.cli.compile:compile_",
        "Artifact -> the same, opened faster on machines like this one.",
    ),
    "run": ("gptx.cli.run:run", "Generate text."),
    "classify": ("gptx.cli.tasks:classify", "Which label fits a text."),
    "summarize": ("gptx.cli.tasks:summarize", "A summary of a text."),
    "score": ("gptx.cli.tasks:score", "Log-probability of each token of a text."),
    "chat": ("gptx.cli.chat:chat", "A conversation in the terminal."),
    "verify": ("gptx.cli.verify:verify", "Prove an artifact's certificate again on this machine."),
    "bench": ("gptx.cli.bench:bench", "Speed, memory and quality beside other engines."),
    "inspect": ("gptx.cli.inspect:inspect", "What an artifact holds."),
    "doctor": ("gptx.cli.doctor:doctor", "What this machine has: versions, providers, conflicts."),
    "completion": ("gptx.cli.completion:completion", "Print the shell's completion script."),
}


class Verbs(click.Group):
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
        return verbs + click.Command.shell_complete(
            self, ctx, incomplete
        )  # the group's own would import every verb

    def invoke(self, ctx: click.Context) -> object:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here, where a closed pipe is still ours to handle
            return result
        except Exception as error:
            if (
                _received
            ):  # an extension module that was being loaded has made an ImportError of our exit
                sys.exit(128 + _received[0])
            if isinstance(error, ModuleNotFoundError):  # imported while the verb ran
                raise GptxError(_missing(ctx.invoked_subcommand or "", error)) from error
            if isinstance(error, BrokenPipeError):
                raise _ClosedPipe from error  # click would make an exit status of 1 of it
            raise


_received: list[int] = []  # the signals that asked us to end


def _end(number: int, _: object) -> None:
    """What is half written is removed on the way out."""
    _received.append(number)
    sys.exit(128 + number)


class _ClosedPipe(Exception):
    """Whoever read our output has enough."""


def _missing(verb: str, error: ModuleNotFoundError) -> str:
    """What to install for a verb that lacks a package; `error` itself where it is our own module that is not there."""
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
    """One line, like an error's; other packages' warnings as Python shows them."""
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
    help="Versions.",
)
def group() -> None:
    """Train, export, quantize and run GPT models on this machine."""


def main() -> None:
    """Run the verb; a GptxError becomes one line and exit status 1, a wrong option one line and 2, Ctrl-C 130, and a
    closed pipe nothing at all."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  (None: it was closed before we started)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    set_up_streams()
    warnings.showwarning = _show_warning
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None)):
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # not under nohup
            signal.signal(number, _end)
    try:
        # prog_name: the same however we were started; windows_expand_args: a prompt with a * in it is no list of files
        status = group.main(prog_name="gptx", standalone_mode=False, windows_expand_args=False)
        sys.exit(
            status if isinstance(status, int) else 0
        )  # click returns what ctx.exit() was given
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        verb = error.ctx.command_path if error.ctx else "gptx"
        message = " ".join(
            error.format_message().split()
        )  # click puts a choice's values on lines of their own
        fail(f"{message.rstrip('.')} (see {verb} --help)")
        sys.exit(error.exit_code)
    except click.ClickException as error:
        fail(error.format_message())
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        fail("interrupted")
        sys.exit(130)
    except (_ClosedPipe, BrokenPipeError):
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # else Python complains when it flushes at exit
        sys.exit(0)
    except GptxError as error:
        fail(str(error))
        sys.exit(1)
    except (
        OSError
    ) as error:  # click prints --help itself; or a disk was filled by what has no better sentence
        where = (
            f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, str | bytes) else ""
        )
        fail(f"{error.strerror or error}{where}")
        sys.exit(1)
