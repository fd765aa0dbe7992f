"""Clients for the gRPC service ``evalmode.v1.Classifier``. The bare install is enough for them.

Example::

    with Client("127.0.0.1:8001") as client:
        print(client.predict("cat.jpg").label)
"""

from evalmode.client.asynchronous import AsyncClient
from evalmode.client.blocking import Client
from evalmode.client.channel import DEFAULT_ADDRESS
from evalmode.client.failure import CallFailed

__all__ = ["DEFAULT_ADDRESS", "AsyncClient", "CallFailed", "Client"]
