"""For tests that interrupt a process."""

# A shell lets its background jobs, and all that they start, ignore SIGINT. Begins the code of `python -c`.
HEAR_INTERRUPTS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
