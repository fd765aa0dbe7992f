"""Ctrl-C takes effect between two steps, or at the end of the training, and is never lost."""

from __future__ import annotations

import signal

from training.interrupts import delay_interrupts


def press_ctrl_c(before_a_call: bool) -> list[str]:
    """Press Ctrl-C in a block of delayed interrupts, and return what was reached."""
    reached = []
    try:
        with delay_interrupts() as check:
            signal.raise_signal(signal.SIGINT)
            reached.append("the next line")
            if before_a_call:
                check()
            reached.append("the end of the block")
        reached.append("after the block")
    except KeyboardInterrupt:
        reached.append("an interrupt")
    return reached


def test_an_interrupt_takes_effect_at_the_next_call() -> None:
    assert press_ctrl_c(before_a_call=True) == ["the next line", "an interrupt"]


def test_an_interrupt_after_the_last_call_takes_effect_at_the_end_of_the_block() -> None:
    assert press_ctrl_c(before_a_call=False) == ["the next line", "the end of the block", "an interrupt"]


def test_the_handler_of_the_process_is_restored() -> None:
    before = signal.getsignal(signal.SIGINT)
    with delay_interrupts() as check:
        check()
    assert signal.getsignal(signal.SIGINT) is before
