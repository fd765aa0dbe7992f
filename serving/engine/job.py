"""A request in progress, and the steps that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from evalmode.errors import DeadlineExpired, RequestCancelled
from serving.engine.call import Call

if TYPE_CHECKING:
    from serving.engine.lane import Lane


class Network(Protocol):
    """What scheduling needs to know of a model."""

    @property
    def max_batch(self) -> int:
        """The largest number of inputs in a batch."""

    @property
    def max_slots(self) -> int:
        """The number of batches of it that may run at the same time; 0: as many as there are slots."""

    def expect_s(self, rows: int) -> float:
        """Return the time that a batch will take, in seconds; 0.0 if it is unknown."""


@dataclass(eq=False, slots=True)
class Job:
    """A request in progress, from its admission to its answer.

    Attributes:
        call: Its call.
        done: Called once with the reply or the exception.
        delays_since: The time since which it delays others: its admission, or the end of its large decode.
        lane: The lane of its model; None while the model is unknown.
        ahead: The number of requests in flight before it: for its model, or for any if it waited while the model was
            unknown.
        aside: Whether it delays no other request at present, because it decodes in a slot for large images.
        waited: Whether a step of it has waited.
        step: The step that waits; None if none does.
        withdrawn: Whether it ends as soon as it would wait again.
    """

    call: Call
    done: Callable[[Any], object]
    delays_since: float
    lane: Lane | None = None
    ahead: int = 0
    aside: bool = False
    waited: bool = False
    step: Decode | Run | None = None
    withdrawn: bool = False


@dataclass(eq=False, slots=True)
class Decode:
    """A step that decodes images, or parses a message.

    Attributes:
        job: Its job.
        work: Does it; must not raise.
        model: The model of the request; None while it is unknown.
        cost_bytes: The memory that it needs.
        since: When it was submitted.
        began: When it began.
    """

    job: Job
    work: Callable[[], object]
    model: Network | None = None
    cost_bytes: int = 0
    since: float = 0.0
    began: float = 0.0


@dataclass(eq=False, slots=True)
class Run:
    """A step that runs a network.

    Attributes:
        job: Its job.
        model: The model.
        rows: The number of inputs.
        kind: Two runs of one model may be in one batch if their kinds are equal.
        content: What is needed to run it.
        since: When it was submitted.
    """

    job: Job
    model: Network
    rows: int
    kind: object
    content: Any = None
    since: float = 0.0


Step = Decode | Run


def explain_withdrawal(step: Step) -> Exception:
    """Make the error of a job that is withdrawn.

    Args:
        step: The step that waits, or would wait.
    """
    what = "a slot" if isinstance(step, Run) else "a slot or memory to decode in"
    if step.job.call.cancelled():
        return RequestCancelled(f"the call was cancelled while waiting for {what}: the network did not run")
    return DeadlineExpired(f"the deadline passed while waiting for {what}: the network did not run")
