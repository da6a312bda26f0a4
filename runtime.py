import ctypes
def keep_freed_memory():
    """Tell glibc to keep freed pages for the next tensor (thresholds for mmap and trim, top pad): on a CPU much of a step is
    otherwise spent in fresh page faults. Does nothing where there is no glibc."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((-3, 1 << 30), (-1, (1 << 31) - 1), (-2, 256 << 20)):
        mallopt(option, value)
