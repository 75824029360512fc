"""What ends a session early."""

import os
import signal
import time

import pytest

from glm_jax.training.stopping import Stopping


def test_signals_are_noted_and_handed_back():
    before = signal.getsignal(signal.SIGTERM)
    with Stopping() as stopping:
        assert stopping.reason(3) is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.reason(3) == "SIGTERM"
        assert stopping.is_urgent
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_interrupt_interrupts():
    # A process that a shell started in the background ignores interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with Stopping() as stopping:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.reason(0) == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_limits():
    assert Stopping(max_steps=5).reason(4) is None
    assert Stopping(max_steps=5).reason(5) == "max_steps"
    assert not Stopping(max_steps=5).is_urgent
    stopping = Stopping(max_minutes=0.001)
    assert stopping.reason(1) is None
    time.sleep(0.07)
    assert stopping.reason(1) == "max_minutes"
