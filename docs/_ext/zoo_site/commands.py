"""Makes the reference of the `zoo` command from its own declarations."""

from __future__ import annotations

import contextlib
import io
import os
import re
from unittest import mock

import typer.main
from typer.cli import get_docs_for_click

from zoo.cli import app
from zoo.commands.finetuning import finetune

_LEAD = """\
Exit codes: 0 done, 1 something failed, 2 wrong use, 75 stopped by a signal (the same command goes on), 130 and 143
ended by a signal. `--json` prints JSON for programs where a command has it. Errors are one line; `--debug` shows the
traceback. `python -m zoo` is the same command.
"""


def page() -> str:
    """Return the page: what typer says of every command, and of `zoo finetune` its own help."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=command.context_class(command), name="zoo", title="The zoo command")
    head, usage = text.split("\n**Usage**", 1)
    title = head.split("\n", 1)[0]
    listed = f"{title}\n\n{_LEAD}\n**Usage**{_without_index(usage)}"
    own = re.compile(r"(?<=^## `zoo finetune`\n\n).*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    return _escaped(own.sub(lambda _: f"```text\n{_finetune_help()}\n```\n\n", listed))


def names() -> list[str]:
    """The commands, in the order of their declarations."""
    return list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def _without_index(text: str) -> str:
    """Leave out typer's list of commands, which cuts their sentences; the page's own contents list them."""
    return re.sub(r"\n\*\*Commands\*\*:\n\n(\* .*\n)+", "\n", text)


def _finetune_help() -> str:
    """What `zoo finetune --help` prints for a reader with 100 columns: typer does not know its options."""
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.suppress(SystemExit),
    ):
        finetune(["--help"])
    return printed.getvalue().strip()


def _escaped(text: str) -> str:
    """Keep what Markdown would read as marks in help texts: a `*` of a shell pattern, a `<` of a placeholder."""
    return re.sub(r"'(\*[^']*)'", r"`\1`", text)
