"""What all tests share."""

import collections
import signal

# Started in the background by a shell without job control, a process inherits an ignored SIGINT, and so would every child
# that a test wants to interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Files with the most slow tests first, then those with the most, so that at the end no worker waits for another one's long file."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    all_of = collections.Counter(item.path for item in items)
    items.sort(key=lambda item: (-slow[item.path], -all_of[item.path]))
