"""A line on the terminal that rich leaves as it is."""

from rich.console import Console


def say(console: Console, text: str) -> None:
    """Print a line with a path or a model's text in it: never wrapped, never read as markup."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)
