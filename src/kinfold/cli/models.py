"""`kinfold models`."""

from jsonargparse import ArgumentParser

from kinfold.cli.base import Command, Given, aligned


def _declare_models(parser: ArgumentParser) -> None:
    del parser  # it takes nothing


def _models(given: Given) -> str:
    from kinfold.models import MODELS

    del given
    rows = [("name", "parameters", "at rows of", "outputs", "takes", "after")] + [
        (name, f"{each.parameters():,}", "x".join(map(str, each.shape)), f"{each.outputs}", each.rows, each.paper)
        for name, each in MODELS.items()
    ]
    table = aligned(rows, right=(1, 2, 3))
    others = "timm:NAME and torchvision:NAME, where these packages are installed, and package.module:factory"
    return f"{table}\n\nEach is sized to the data (text: a vocabulary of 20,000). Also {others}."


MODELS = Command("models", "Lists the networks by name.", "", _declare_models, _models)
