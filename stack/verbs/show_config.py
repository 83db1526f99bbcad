"""``stack show-config --fields``: what a recipe may hold."""

from __future__ import annotations

from rich.console import Console

from stack.config.load import JOBS, field_table


def print_fields() -> None:
    """Every field of all kinds of recipe with its default and meaning."""
    console = Console(highlight=False)
    for job, model in JOBS.items():
        console.print(f"\n[bold]job: {job}[/bold]")
        for name, default, text in field_table(model):
            console.print(f"  {name} [dim]({default})[/dim]", soft_wrap=True)
            if text:
                console.print(f"      {text}")
