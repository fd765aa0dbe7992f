"""Classify photos by NVIDIA's client: python classify.py HOST:PORT MODEL PHOTO...

The server decodes the photos, so they are sent as they are. Needs: pip install 'tritonclient[grpc]'
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton


def main() -> None:
    """Send all photos in one request, and print the best two labels of each."""
    address, model, *photos = sys.argv[1:]
    sent = triton.InferInput("image", [len(photos)], "BYTES")
    sent.set_data_from_numpy(np.array([Path(photo).read_bytes() for photo in photos], dtype=np.object_))
    best = triton.InferRequestedOutput("probabilities", class_count=2)
    with triton.InferenceServerClient(address) as client:
        rows = client.infer(model, [sent], outputs=[best]).as_numpy("probabilities")
    for photo, row in zip(photos, rows, strict=True):
        answers = (answer.decode().split(":") for answer in row)  # value:index:label
        print(photo, *(f"{label} {float(value):.4f}" for value, _, label in answers))


if __name__ == "__main__":
    main()
