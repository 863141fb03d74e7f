"""A machine of its own, as far as systemd can tell: this one's programs, in namespaces, booted by systemd.

    python -m tests.systemd.box      says why that is impossible here, and exits with 1; else nothing, and 0

Nothing of it outlives `stop`: mounts, processes and files go with the namespaces.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = Path("/lib/systemd/systemd")
PROGRAMS = (
    "systemctl", "journalctl", "systemd-sysusers", "systemd-tmpfiles",
    "unshare", "nsenter", "setpriv", "runuser", "curl",
)  # fmt: skip
PATIENCE_S = 45
"""Far longer than anything here takes; reaching it is a failure."""
NAMESPACES = ("--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup")


def obstacle() -> str:
    """Why systemd cannot be booted here; "" where it can."""
    if not SYSTEMD.exists():
        return f"there is no {SYSTEMD}"
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"there is no {missing[0]}"
    if os.geteuid():
        return "only root can make the namespaces that it needs"
    group = _cgroups()
    if group is None:
        return "no cgroup2 hierarchy is mounted"
    test = f"mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w /mnt/r && mount -t overlay -o {OVERLAY} o /mnt/r"
    done = subprocess.run(
        ["unshare", *NAMESPACES, "--fork", "--propagation", "private", "sh", "-c", test],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    if done.returncode:
        return f"namespaces and overlays are not to be had: {done.stderr.strip()}"
    try:
        (group / "runnerd-tests-look").mkdir()
        (group / "runnerd-tests-look").rmdir()
    except OSError as error:
        return f"no cgroup can be made in {group}: {error.strerror}"
    return ""


OVERLAY = "lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w"


def _cgroups() -> Path | None:
    """Where cgroup2 is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    return None


class Box:
    """A booted machine. Commands in it are root's, unless they are another's."""

    def __init__(self, folder: Path) -> None:
        """Begin to boot. `folder` is for a socket."""
        group = _cgroups()
        assert group is not None
        self._group = group / f"runnerd-tests-{os.getpid()}"
        self._group.mkdir()
        script = str(ROOT / "tests/systemd/boot.sh")
        join = f'echo $$ >{self._group}/cgroup.procs; exec "$@"'
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES]
        command += ["--fork", "--kill-child", "--propagation", "private"]
        python = str(Path(sys.base_prefix).resolve())
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._told.bind(str(folder / "notify"))
        self._told.settimeout(PATIENCE_S)
        self._process = subprocess.Popen(
            ["sh", "-c", join, "sh", *command, "bash", script, str(ROOT), python, str(folder)],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    @property
    def _init(self) -> str:
        """Its first process, as this machine numbers it."""
        pid = self._process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]

    def wait(self) -> None:
        """Wait until it has booted. Raises AssertionError."""
        while b"READY=1" not in self._told.recv(65536):
            assert self._process.poll() is None, self._process.communicate()[1]
        self._told.close()  # it goes on telling, and waits for whoever does not read it
        state = self.run("systemctl", "is-system-running", "--wait", check=False).stdout.strip()
        failed = self.run("systemctl", "--failed", "--no-legend", check=False).stdout
        assert state in ("running", "degraded"), f"{state}: {failed}"

    def run(
        self, *command: str, check: bool = True, user: str = "", input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it. Raises AssertionError, with what it said, if it fails and is not to."""
        as_user = ["runuser", "-u", user, "--"] if user else []
        done = subprocess.run(
            ["nsenter", "--target", self._init, "--all", "env", "-i", "-C", "/", PATH, *as_user, *command],
            capture_output=True, text=True, check=False, timeout=PATIENCE_S, input=input,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done

    def shell(self, script: str) -> str:
        """Run a shell script in it; what it prints."""
        return self.run("bash", "-euc", script).stdout

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in it, and return at once."""
        return subprocess.Popen(
            ["nsenter", "--target", self._init, "--all", "env", "-i", "-C", "/", PATH, *command],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def stop(self) -> None:
        """End everything in it."""
        self._told.close()
        if self._process.poll() is None:
            init = os.pidfd_open(int(self._init))
            self._process.kill()  # with it goes its child, and with that the whole box
            self._process.wait(PATIENCE_S)
            assert select.select([init], [], [], PATIENCE_S)[0], "its systemd cannot be ended"
            os.close(init)
        assert self._process.stderr is not None
        self._process.stderr.close()
        for folder, _, _ in os.walk(self._group, topdown=False):
            os.rmdir(folder)


PATH = "PATH=/opt/runnerd/.venv/bin:/usr/sbin:/usr/bin:/sbin:/bin"

if __name__ == "__main__":
    print(obstacle(), end="")
    sys.exit(1 if obstacle() else 0)
