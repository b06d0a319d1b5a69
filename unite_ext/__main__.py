"""`python -m unite_ext` is the `unite` command."""

from .cli import app

app()
