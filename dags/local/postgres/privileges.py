"""Running Postgres without the rights of root, because it does not start as root.

Root becomes `nobody`, the owner of the data directory, and keeps one capability: to enter directories that only root
can read. No user or permission of the machine is changed.
"""

import ctypes
import os
import pwd
import sys

# linux/prctl.h and linux/capability.h
PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1


def unprivileged_command(command: list[str], death_signal: int) -> list[str]:
    """Return a command that runs the given one without root's rights.

    On Linux the command gets the signal (0 for none) when this process dies.
    """
    options = ["--parent", str(os.getpid()), "--death-signal", str(death_signal)]
    return [sys.executable, "-m", "dags.local.postgres", "run-unprivileged", *options, "--", *command]


def run_unprivileged(parent: int, death_signal: int, command: tuple[str, ...]) -> None:
    """Replace this process by a command without the rights of root; on Linux it gets the signal when `parent` dies."""
    if os.geteuid() == 0:
        become_unprivileged()
    if sys.platform == "linux" and death_signal:
        # After the change of user, which clears it.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit("the process that started Postgres is already gone")
    os.execv(command[0], command)  # noqa: S606 - no shell is the point


def become_unprivileged() -> None:
    """Become `nobody`, with the capability to reach files that only root can."""
    nobody = pwd.getpwnam("nobody")
    linux = sys.platform == "linux"
    libc = ctypes.CDLL(None, use_errno=True)
    if linux:
        libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)
    os.environ["HOME"] = "/"
    if linux:
        mask = 1 << CAP_DAC_OVERRIDE
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        # effective, permitted, inheritable: of capabilities 0 to 31, then of 32 to 63
        sets = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
        if (
            libc.capset(header, sets) != 0
            or libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0) != 0
        ):
            # A container may forbid it; directories that all users can enter still work.
            print(
                f"Postgres runs as nobody without extra rights ({os.strerror(ctypes.get_errno())}): "
                "its data directory and this Python must be readable by all users.",
                file=sys.stderr,
            )
