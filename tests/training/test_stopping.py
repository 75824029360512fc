"""What ends a session early."""

import os
import signal
import time

import pytest

from glm_jax.training.stopping import Stopping, is_urgent


def test_signals_are_noted_and_handed_back():
    before = signal.getsignal(signal.SIGTERM)
    with Stopping() as stopping:
        assert stopping.wish() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.wish() == "SIGTERM"
        assert is_urgent("SIGTERM")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_interrupt_interrupts():
    # A process that a shell started in the background ignores interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with Stopping() as stopping:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.wish() == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_limits():
    stopping = Stopping(max_minutes=0.001)
    assert stopping.wish() is None
    time.sleep(0.07)
    assert stopping.wish() == "max_minutes"
    assert not is_urgent("max_minutes")


def test_a_signal_is_known_before_python_calls_its_handler(monkeypatch):
    """While a program is compiled no handler runs."""
    monkeypatch.setattr(Stopping, "_note", lambda *_: None)
    with Stopping() as stopping:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.wish() == "SIGTERM"
        assert stopping.wish() == "SIGTERM"
