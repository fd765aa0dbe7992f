"""A program that asks a server of evalmode. Needs evalmode without extras."""

from __future__ import annotations

from evalmode import CallFailed, Client


def describe(client: Client, photo: bytes) -> str:
    """What the shop shows beside a customer's photo."""
    try:
        prediction = client.predict(photo)
    except CallFailed as error:
        return "please send a photo" if error.code == "INVALID_ARGUMENT" else "please try again later"
    return prediction.label if prediction.probability > 0.5 else "not sure"
