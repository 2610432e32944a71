"""What all tests share."""

import signal

# Started in the background by a shell without job control, a process inherits an ignored SIGINT, and so would every child
# that a test wants to interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
