"What every test may rely on."
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from tqdm import tqdm

# A shell's background job ignores SIGINT and its children inherit that: a test that interrupts a run would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)

# tqdm's lock is a semaphore that copies of this process share: one that is killed while it holds it would stop all others for ever.
os.register_at_fork(after_in_child=lambda: tqdm.set_lock(threading.RLock()))

# A file is one process's; the longest come first, so that no process is left with one of them at the end.
LONGEST = (
    "smoke", "site", "every_objective", "reproduce", "streaming", "parity_stochastic", "kills", "data", "rerun",
    "canaries",
    "house", "disk", "registries", "provenance", "hostile", "properties", "compare", "experiments", "bare", "cli",
)


def pytest_collection_modifyitems(items):
    lost = [name for name in LONGEST if not Path(__file__).with_name(f"test_{name}.py").is_file()]
    if lost: raise pytest.UsageError(f"LONGEST in tests/conftest.py names files that are not there: {', '.join(lost)}")
    places = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))  # the order within a file stays


@pytest.fixture
def turns(request):
    """`for n in turns(least)`: n = 0, 1, ...: `least` turns. In `make test-faults` one at least, then more, until this test's share of the
    time is over (or its own seconds, in `make fuzz`); a test that got fewer than `least` is noted by `turns.short()`.
    A turn for which the test calls `turns.missed()` does not count; of ten times as many, at most."""
    items, until, own = request.session.items, *(float(os.environ.get(f"ROBUSTNB_{name}", 0)) for name in ("UNTIL", "EACH"))  # UNTIL: seconds since 1970

    def each(least):
        sharing = sum("turns" in item.fixturenames for item in items[items.index(request.node):])
        mine, n = time.time() + (own or max(0.0, until - time.time()) / sharing), 0
        sure = min(1, least) if each.timed else least
        each.vain = 0
        while n < sure + min(each.vain, 9 * sure) or time.time() < mine:
            yield n
            n += 1
        if n - each.vain < least: each.short()

    def missed(): each.vain += 1

    def short():
        if "ROBUSTNB_FAULTS" in os.environ:
            with open(Path(os.environ["ROBUSTNB_FAULTS"]) / "short", "a") as file: file.write(request.node.name + "\n")
    each.timed, each.missed, each.short = bool(until or own), missed, short
    return each
