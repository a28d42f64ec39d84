"""gptx completion: print the script that completes verbs, options and paths in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from gptx.cli.output import write_out


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the shell's completion script.

    \b
    bash:  echo 'eval "$(gptx completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(gptx completion zsh)"' >> ~/.zshrc
    fish:  gptx completion fish > ~/.config/fish/completions/gptx.fish
    """
    from gptx.cli import group

    script = get_completion_class(shell)
    assert script is not None
    write_out(script(group, {}, "gptx", "_GPTX_COMPLETE").source() + "\n")
