"""Found by an interpreter on its path, this takes away what only Linux has, before anything else is imported: what is
left is about what macOS gives. All that the interpreter starts finds it too."""

import os
import select
import signal
import socket

_OF_LINUX = {
    os: (
        *("eventfd", "eventfd_read", "eventfd_write", "EFD_CLOEXEC", "EFD_NONBLOCK", "EFD_SEMAPHORE"),
        *("memfd_create", "MFD_CLOEXEC", "pidfd_open", "pipe2", "waitid", "WNOWAIT"),
        *("sched_setaffinity", "CLD_EXITED", "CLD_KILLED"),
    ),
    select: ("epoll",),
    signal: ("pidfd_send_signal", "SIGRTMIN", "SIGRTMAX"),
    socket: ("MSG_CMSG_CLOEXEC",),
}
for _module, _names in _OF_LINUX.items():
    for _name in _names:
        if hasattr(_module, _name):
            delattr(_module, _name)
