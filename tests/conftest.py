"What every test may rely on."
import os
import signal
import time

import pytest

# A shell's background job ignores SIGINT and its children inherit that: a test that interrupts a run would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def turns(request):
    """`for n in turns(least)`: n = 0, 1, ...: `least` turns, and in `make test-faults` more, until this test's share of the time is over.
    A turn for which the test calls `turns.missed()` does not count; of ten times as many, at most."""
    items, until = request.session.items, float(os.environ.get("ROBUSTNB_UNTIL", 0))  # seconds since 1970

    def each(least):
        sharing = sum("turns" in item.fixturenames for item in items[items.index(request.node):])
        mine, n = time.time() + max(0.0, until - time.time()) / sharing, 0
        each.vain = 0
        while n < least + min(each.vain, 9 * least) or time.time() < mine:
            yield n
            n += 1

    def missed(): each.vain += 1
    each.missed = missed
    return each
