"""Prints the answers of ``evalmode predict``: a table, CSV or JSON, what answered, and the accuracy."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Column, Table

from evalmode.cli.sources import Source
from evalmode.prediction import Prediction

Answer = tuple[Source, Prediction]


def print_json(answers: list[Answer]) -> None:
    """Print a JSON object for each image, one a line."""
    for source, prediction in answers:
        click.echo(json.dumps({"image": str(source.path), **asdict(prediction)}))


def print_csv(answers: list[Answer]) -> None:
    """Print a row for each label of each image."""
    writer = csv.writer(sys.stdout)
    writer.writerow(["image", "rank", "label", "probability"])
    for source, prediction in answers:
        for rank, score in enumerate(prediction.scores, 1):
            writer.writerow([source.path, rank, score.label, score.probability])


def print_table(answers: list[Answer]) -> None:
    """Print a table with a row for each image."""
    several = any(prediction.scores[1:] for _, prediction in answers)
    table = Table(Column("image", overflow="fold"), "label", "probability", *(["then"] if several else []))
    for source, prediction in answers:
        then = ", ".join(f"{score.label} {score.probability:.3f}" for score in prediction.scores[1:])
        row = (str(source.path), prediction.label, f"{prediction.probability:.3f}")
        table.add_row(*row, *([then] if several else []))
    width = None if sys.stdout.isatty() else 200
    Console(highlight=False, markup=False, emoji=False, width=width).print(table)  # paths and labels as they are


def print_models(answers: list[Answer], file: Path | None, address: str) -> None:
    """Print what answered: several versions, if a server replaced one in the meantime.

    Args:
        answers: The answers.
        file: The artifact that answered in this process; None if a server did.
        address: The address of the server.
    """
    for name, version, digest in dict.fromkeys((one.model, one.version, one.digest) for _, one in answers):
        what = file or f"{name}/{version} at {address}"
        click.echo(f"model    {what}, {digest[:19]}")


def print_accuracy(answers: list[Answer], labels: tuple[str, ...]) -> None:
    """Print the accuracy of several images if each is in a folder that is named like a label.

    Args:
        answers: The answers.
        labels: The labels of the model.
    """
    expected = [source.find_label(labels) for source, _ in answers]
    if len(answers) > 1 and None not in expected:
        right = sum(label == prediction.label for label, (_, prediction) in zip(expected, answers, strict=True))
        share = right / len(answers)
        click.echo(f"accuracy {share:.4f}: {right} of {len(answers)} images have the label of their folder", err=True)
