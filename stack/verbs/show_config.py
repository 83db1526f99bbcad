"""``stack show-config --fields``: what a recipe may hold."""

from __future__ import annotations

from rich.console import Console

from stack.config.load import field_table
from stack.config.schema import DistillRecipe, PretrainRecipe


def print_fields() -> None:
    """Every field of both kinds of recipe with its default and meaning."""
    console = Console(highlight=False)
    for title, model in (("job: distill", DistillRecipe), ("job: pretrain", PretrainRecipe)):
        console.print(f"\n[bold]{title}[/bold]")
        for name, default, text in field_table(model):
            console.print(f"  {name} [dim]({default})[/dim]", soft_wrap=True)
            if text:
                console.print(f"      {text}")
