"What every test may rely on."
import signal

# A shell's background job ignores SIGINT and its children inherit that: a test that interrupts a run would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)
