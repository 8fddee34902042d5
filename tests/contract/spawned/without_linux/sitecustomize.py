"""Hides the features that only Linux has, before anything else is imported.

An interpreter imports this module from its path when it starts, and so do its child processes. What is left is about
what macOS has.
"""

import os
import select
import signal
import socket

_LINUX_ONLY = {
    os: (
        *("eventfd", "eventfd_read", "eventfd_write", "EFD_CLOEXEC", "EFD_NONBLOCK", "EFD_SEMAPHORE"),
        *("memfd_create", "MFD_CLOEXEC", "pidfd_open", "pipe2", "waitid", "WNOWAIT"),
        *("sched_setaffinity", "CLD_EXITED", "CLD_KILLED"),
    ),
    select: ("epoll",),
    signal: ("pidfd_send_signal", "SIGRTMIN", "SIGRTMAX"),
    socket: ("MSG_CMSG_CLOEXEC",),
}
for _module, _names in _LINUX_ONLY.items():
    for _name in _names:
        if hasattr(_module, _name):
            delattr(_module, _name)
