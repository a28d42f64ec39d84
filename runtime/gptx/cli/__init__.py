"""The command `gptx`: a table of verbs. A verb's module is imported only when it is called, so `gptx run` starts without
torch, and a verb whose packages are missing says which to install."""

from __future__ import annotations

import importlib
import sys

import click

from gptx.errors import GptxError

VERBS = {
    # verb: (module, what --help says)
    "import": ("gptx_models.cli:import_", "Hugging Face, GGUF, nanoGPT or llama2.c weights -> checkpoint folder."),
    "train": ("gptx_models.cli:train", "Text -> checkpoint folder."),
    "export": ("gpt_export.cli:export", "Checkpoint folder -> ONNX artifact, parity proved."),
    "quantize": ("gpt_export.cli:quantize", "Artifact -> int8, int4 or fp16 artifact, with proof."),
    "run": ("gptx.cli.run:run", "Generate text."),
    "chat": ("gptx.cli.chat:chat", "A conversation in the terminal."),
    "verify": ("gptx.cli.verify:verify", "Prove an artifact's certificate again on this machine."),
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
            from gptx.install import pip_command

            package = (error.name or "").split(".")[0]
            if package in ("gptx", ""):
                raise
            message = f"gptx {cmd_name} needs the package {package}, which is not installed: {pip_command('export')}"
            return click.Command(cmd_name, callback=lambda: _fail(message), add_help_option=False, context_settings=_ANY)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


_ANY = {"ignore_unknown_options": True, "allow_extra_args": True}


def _fail(message: str) -> None:
    raise GptxError(message)


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from gptx.doctor import version_line

        click.echo(version_line())
        ctx.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Versions.")
def group() -> None:
    """Train, export, quantize and run GPT models on this machine."""


def main() -> None:
    """Run the verb; a GptxError becomes one line and exit status 1, Ctrl-C status 130, a closed pipe none at all."""
    try:
        group.main(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # else Python complains of standard output when it ends
        sys.exit(0)
    except GptxError as error:
        click.echo(f"gptx: {error}", err=True)
        sys.exit(1)
