"""The workers of a server: started, restarted when they end, given the same models, and drained."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Any

from evalmode.errors import ArtifactInvalid, EvalmodeError, TrialUnavailable, WorkerUnavailable
from serving.services.source import Facts
from serving.threads import start_threads
from serving.workers.channel import Answer, ChannelClosed, ChannelLate, Message
from serving.workers.child import Child, WorkerEnded
from serving.workers.quarantine import Quarantine
from serving.workers.state import FileVersion, State

log = logging.getLogger("serving")

START_S = 120.0  # for a worker to import its modules, or to bind its port
SWAP_S = 30.0  # for a worker to answer requests by other versions
ATTEMPTS = 5  # at the start, before the server gives up
IDLE_S = 5.0  # between two looks whether a worker has ended, without a change of its models
# A worker that ends sooner is restarted after a delay, which doubles until one lives as long.
LONG_LIFE_S = 60.0
FIRST_DELAY_S, MAX_DELAY_S = 0.1, 30.0
SHORT_LIFE_S = 1.0
MAX_SERVED_DELAY_S = 0.5  # the limit for a worker that has served for longer than SHORT_LIFE_S


@dataclass(frozen=True)
class Settings:
    """What all workers are started with.

    Attributes:
        count: The number of workers.
        message: The configuration of a worker, without its number.
        load_s: Seconds that a worker may take to load a version.
        stderr: The file descriptor of the log.
        counters: The file descriptor of the shared counters.
    """

    count: int
    message: Message
    load_s: float
    stderr: int
    counters: int


class WorkerGroup:
    """Keeps a number of workers running.

    Args:
        settings: What they are started with.
        answer: Answers their requests.
        on_quarantine: Called with a version that is not loaded again although workers should serve it, and why.
        on_end: Called with the number of a worker whose process has ended.

    Attributes:
        restarts: How often a worker was started again.
    """

    def __init__(
        self,
        settings: Settings,
        answer: Answer,
        on_quarantine: Callable[[FileVersion, ArtifactInvalid], object],
        on_end: Callable[[int], object],
    ) -> None:
        self._settings = settings
        self._answer = answer
        self._on_quarantine = on_quarantine
        self._on_end = on_end
        self._quarantine = Quarantine()
        self.restarts = 0
        self._changed = threading.Condition()  # guards the following attributes
        self._children: dict[int, Child] = {}
        self._state: State | None = None
        self._pending: set[FileVersion] = set()
        self._opened = False  # whether all workers have been ready
        self._failure: EvalmodeError | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start the workers. They are ready once ``publish`` was called and they have loaded the models.

        Raises:
            ThreadsUnavailable: The system cannot start the threads that watch them.
        """
        for number in range(1, self._settings.count + 1):
            start_threads(1, f"worker-{number}", lambda number=number: self._tend(number))  # type: ignore[misc]

    def wait_until_ready(self, stop: threading.Event) -> None:
        """Wait until all workers are ready, or until ``stop`` is set.

        Raises:
            EvalmodeError: A worker cannot start.
        """
        self._wait(lambda: self._failure is not None or self.is_ready() or stop.is_set())
        if self._failure is not None:
            raise self._failure

    def is_ready(self) -> bool:
        """Whether all workers answer calls."""
        return self.count_ready() == self._settings.count

    def count_ready(self) -> int:
        """The number of workers that answer calls."""
        return sum(child.is_ready for child in self._list_children())

    def list_processes(self) -> list[int]:
        """The numbers of the processes of all workers, in the order of the numbers of the workers."""
        return [child.pid for child in self._list_children()]

    def check(self, timeout_s: float) -> float | None:
        """Return for how many seconds a worker has not answered a health check of its own.

        Args:
            timeout_s: Seconds to wait for the workers.

        Returns:
            The seconds of the worker that has been silent for longest; None if one does not answer, or none is ready.
        """
        answers = self.ask_all("ping", timeout_s).values()
        silent_s = [float(answer[0]["silent_s"]) for answer in answers if answer]
        return max(silent_s) if silent_s and len(silent_s) == len(answers) else None

    def take(self, version: FileVersion, artifact: bytes) -> Facts:
        """Let one worker after the other load a version, which answers no requests yet.

        Args:
            version: The version.
            artifact: The bytes of its file.

        Returns:
            The facts of the version.

        Raises:
            ArtifactInvalid: A worker refuses it, or a second worker ended while it loaded it.
            ProviderUnavailable: The execution provider is not available.
            TrialUnavailable: No worker is running that could load it, or a worker ended while it loaded it.
        """
        self._wait(lambda: self._failure is not None or self._stopping.is_set() or self._list_configured())
        if self._failure is not None:
            raise self._failure
        with self._changed:
            self._pending.add(version)
        if self._quarantine.has_ended_one(version) and self._opened and not self.is_ready():
            raise TrialUnavailable("it has ended a worker: it is tried again once all workers are ready")
        facts = None
        for child in self._list_configured():
            if child.channel.closed.is_set():  # it loads the version when it is started again
                continue
            try:
                facts = child.load(version, artifact, self._settings.load_s)
            except WorkerEnded as error:
                reason = self._quarantine.note_end(version, str(error))
                if self._opened or self._stopping.is_set() or isinstance(reason, ArtifactInvalid):
                    raise reason from error
                log.error("%s", reason)  # without it, the server might have no model to start with
                return self.take(version, artifact)
        if facts is None:
            raise TrialUnavailable("no worker is running that could load it")
        self._quarantine.note_loaded(version)
        return facts

    def publish(self, state: State) -> None:
        """Let all workers answer requests by the versions of a state. Returns before they do.

        They release versions that ``take`` has loaded and that are neither served nor may be served later.
        """
        with self._changed:
            generation = self._state.generation + 1 if self._state else 1
            self._state = state.number(generation)
            self._pending = set(filter(state.may_follow, self._pending))
            self._changed.notify_all()

    def wait_until_published(self, timeout_s: float | None) -> bool:
        """Wait until all ready workers answer by the newest state.

        Args:
            timeout_s: Seconds to wait; None: no limit.

        Returns:
            Whether they do.
        """
        wanted = self._state.generation if self._state else 0
        return self._wait(
            lambda: all(child.generation >= wanted for child in self._list_children() if child.is_ready), timeout_s
        )

    def ask_all(
        self, kind: str, timeout_s: float, message: Message | None = None
    ) -> dict[int, tuple[Message, bytes] | None]:
        """Ask all ready workers at the same time.

        Args:
            kind: What is asked for.
            timeout_s: Seconds to wait for their answers.
            message: The JSON object of the request.

        Returns:
            The answer of each worker by its number; None if it did not answer.
        """
        children = [child for child in self._list_children() if child.is_ready]
        answers: dict[int, tuple[Message, bytes] | None] = {child.number: None for child in children}

        def ask(child: Child) -> None:
            with suppress(ChannelClosed, ChannelLate, EvalmodeError, RuntimeError):
                answers[child.number] = child.channel.ask(kind, message, timeout_s=timeout_s)

        if children:
            with ThreadPoolExecutor(len(children)) as threads:
                list(threads.map(ask, children))
        return answers

    def drain(self, limit_s: float) -> dict[int, tuple[Message, bytes] | None]:
        """Drain all workers. Their processes end by ``kill``.

        Args:
            limit_s: Seconds that this may take.

        Returns:
            The answer of each worker by its number; None if it did not answer.
        """
        self._stopping.set()
        return self.ask_all("drain", limit_s)

    def kill(self) -> None:
        """Kill all workers. Does not block."""
        self._stopping.set()
        for child in self._list_children():
            child.kill()

    def _list_children(self) -> list[Child]:
        return [child for _, child in sorted(self._children.copy().items())]

    def _list_configured(self) -> list[Child]:
        return [one for one in self._list_children() if one.is_configured and not one.channel.closed.is_set()]

    def _wait(self, holds: Callable[[], object], timeout_s: float | None = None) -> bool:
        """Wait until a condition holds, at most ``timeout_s``; return whether it does."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not holds():
                left = 0.2 if until is None else min(0.2, until - time.monotonic())
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def _set(self, child: Child, **attributes: Any) -> None:
        """Set attributes of a child, and wake those who wait for them."""
        with self._changed:
            for name, value in attributes.items():
                setattr(child, name, value)
            self._changed.notify_all()

    def _tend(self, number: int) -> None:
        """Start a worker again and again, until the server stops."""
        short_lives = 0
        while not self._stopping.is_set():
            ready = 0.0
            child, problem = None, ""
            try:
                child = Child(number, self._settings.stderr, self._settings.counters, self._answer)
                self._children[number] = child
                self._bring_up(child)
                ready = time.monotonic()
            except EvalmodeError as error:
                problem = str(error)
                self._give_up(error)
            except (ChannelClosed, ChannelLate, RuntimeError) as error:
                problem = str(error)
            if child is not None:
                if not ready:
                    child.kill()
                how = child.wait()
                problem = problem or f"it ended {how}"
                self._set(child, is_configured=False, is_listening=False, is_ready=False)
                self._on_end(number)
            if self._stopping.is_set():
                return
            lived_s = time.monotonic() - ready if ready else 0.0
            short_lives = 0 if lived_s >= LONG_LIFE_S else short_lives + 1
            limit_s = MAX_DELAY_S if lived_s < SHORT_LIFE_S else MAX_SERVED_DELAY_S
            delay_s = min(limit_s, FIRST_DELAY_S * 2 ** (short_lives - 1)) if short_lives else 0.0
            log.error("worker %s is restarted %s: %s", number, f"in {delay_s:.1f} s" if delay_s else "now", problem)
            if not self._opened and short_lives >= ATTEMPTS:
                self._give_up(WorkerUnavailable(f"worker {number} cannot start, {ATTEMPTS} times in a row: {problem}"))
            self._stopping.wait(delay_s)
            self.restarts += 1

    def _give_up(self, error: EvalmodeError) -> None:
        """End the start of the server, if it has not been ready yet."""
        with self._changed:
            if not self._opened and self._failure is None:
                self._failure = error
                self._changed.notify_all()

    def _bring_up(self, child: Child) -> None:
        """Let a worker import its modules, load the models, listen, and once all others listen, start."""
        channel = child.channel
        channel.ask("configure", {**self._settings.message, "number": child.number}, timeout_s=START_S)
        self._set(child, is_configured=True)

        def ended() -> bool:
            return channel.closed.is_set() or self._stopping.is_set()

        self._wait(lambda: self._state is not None or ended())
        self._update(child)
        while not self._serves(child) and not ended():  # its calls would fail, those of other workers do not
            self._wait(lambda: child.generation != self._generation or ended(), IDLE_S)
            self._update(child)
        channel.ask("listen", timeout_s=START_S)
        self._set(child, is_listening=True)
        everyone = range(1, self._settings.count + 1)
        self._wait(
            lambda: (
                self._opened
                or ended()
                or all(one in self._children and self._children[one].is_listening for one in everyone)
            )
        )
        channel.ask("start", timeout_s=START_S)
        self._set(child, is_ready=True)
        self._opened = self._opened or self.is_ready()
        start_threads(1, f"models-{child.number}", lambda: self._follow(child))
        start_threads(1, f"watch-{child.number}", lambda: child.watch(self._stopping))

    def _follow(self, child: Child) -> None:
        """Bring the models of a worker up to date, until it ends."""
        while not child.channel.closed.is_set():
            with self._changed:
                self._changed.wait_for(lambda: child.generation != self._generation, IDLE_S)
            if child.generation == self._generation and all(version in self._quarantine for version in child.lacks):
                continue
            try:
                self._update(child)
            except (ChannelClosed, ChannelLate, RuntimeError) as error:
                if not self._stopping.is_set() and not child.channel.closed.is_set():
                    log.error("worker %s does not change its models, and is killed: %s", child.number, error)
                child.kill()
                return

    @property
    def _generation(self) -> int:
        return self._state.generation if self._state else 0

    def _update(self, child: Child) -> None:
        """Put the newest state into effect in a worker, which first loads what it lacks."""
        if (state := self._state) is None:  # the server stops before it has models
            raise ChannelClosed
        missing = self._put(child, state, partial=False)
        for version in missing:
            self._reload(child, version, state)
        if missing:
            missing = self._put(child, state, partial=True)
        self._set(child, generation=state.generation, lacks=frozenset(missing))

    def _put(self, child: Child, state: State, partial: bool) -> list[FileVersion]:
        """Let a worker answer by a state, and return what it lacks. If it lacks any, only if ``partial`` is true."""
        with self._changed:
            pending = [*self._pending]  # it may have loaded more of them since the last time
        message = {"served": state.served, "entries": [*map(astuple, state.entries)], "pending": pending}
        answer, _ = child.channel.ask("put", {**message, "partial": partial}, timeout_s=SWAP_S)
        return [(name, number, digest) for name, number, digest in answer["missing"]]

    def _serves(self, child: Child) -> bool:
        """Whether a worker has loaded a version of the state, or the state has none."""
        assert self._state is not None
        served = {version for versions in self._state.served.values() for version in versions}
        return not served or not served <= child.lacks

    def _reload(self, child: Child, version: FileVersion, state: State) -> None:
        """Let a worker load a version that others serve. It serves without it if that fails.

        Raises:
            ChannelClosed: It has ended.
        """
        name, number, _ = version
        try:
            if version in self._quarantine:
                raise ArtifactInvalid("workers ended while they loaded it")
            artifact = state.read(version)
            if child.channel.closed.is_set():
                raise ChannelClosed
            child.load(version, artifact, self._settings.load_s)
            self._quarantine.note_loaded(version)
        except WorkerEnded as error:
            if not self._stopping.is_set():
                why = self._quarantine.note_end(version, str(error))
                if isinstance(why, ArtifactInvalid):
                    self._on_quarantine(version, why)
                else:
                    log.error("%s", why)
            raise ChannelClosed from error
        except (EvalmodeError, OSError, RuntimeError) as error:  # the last is a fault in the worker
            if version not in child.lacks:
                log.error("worker %s lacks %s/%s: %s", child.number, name, number, error)
