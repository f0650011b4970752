"""A SLURM cluster of this machine for the duration of a test: munged, slurmctld and slurmd."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from patience import PATIENCE

PROGRAMS = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "scancel",
    "squeue",
    "scontrol",
    "sinfo",
)
WHERE = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin:/sbin"
# cred_expire is how long a requeued job waits before it begins again
CONFIGURATION = """
ClusterName=fastdiff
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={here}/munge.sock,cred_expire=5
StateSaveLocation={here}/state
SlurmdSpoolDir={here}/spool
SlurmctldPidFile={here}/slurmctld.pid
SlurmdPidFile={here}/slurmd.pid
SlurmctldLogFile={here}/slurmctld.log
SlurmdLogFile={here}/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class CannotStart(Exception):
    """The daemons cannot run here; the message says why."""


class Cluster:
    """A cluster with its own folder. Raises CannotStart. Call `stop` at the end.

    Attributes: environment: variables with which SLURM's commands and jobs find the cluster.
    """

    def __init__(self, seconds: float = 30.0):
        missing = [name for name in PROGRAMS if shutil.which(name, path=WHERE) is None]
        if missing:
            raise CannotStart(
                f"{', '.join(missing)} not installed (Debian: munge slurmctld slurmd slurm-client)"
            )
        self.here = Path(tempfile.mkdtemp(prefix="slurm-"))  # the path of a socket must be short
        self.environment = os.environ | {"SLURM_CONF": str(self.here / "slurm.conf"), "PATH": WHERE}
        self._daemons: list[subprocess.Popen[bytes]] = []
        try:
            self._start(seconds)
        except BaseException:
            self.stop()
            raise

    def _start(self, seconds: float) -> None:
        host, here = socket.gethostname().partition(".")[0], self.here
        for name in ("state", "spool"):
            (here / name).mkdir()
        with open(
            here / "munge.key", "xb", opener=lambda path, flags: os.open(path, flags, 0o600)
        ) as file:
            file.write(os.urandom(1024))
        text = CONFIGURATION.format(
            host=host,
            here=here,
            ports=_free_ports(2),
            user=getpass.getuser(),
            cpus=os.cpu_count() or 1,
        )
        (here / "slurm.conf").write_text(text)
        files = [
            f"--{name.replace('.', '-')}-file={here}/munge.{name}"
            for name in ("key", "pid", "log", "seed")
        ]
        self._daemon("munged", "--foreground", "--force", f"--socket={here}/munge.sock", *files)
        end = time.monotonic() + seconds
        while not (here / "munge.sock").exists():
            self._check(end)
        self._daemon("slurmctld", "-D", "-c")
        self._daemon("slurmd", "-D", "-N", host)
        while self.ask("sinfo", "--noheader", "--format=%T", check=False) != "idle":
            self._check(end)

    def _daemon(self, name: str, *arguments: str) -> None:
        program = shutil.which(name, path=WHERE)
        assert program is not None
        with open(self.here / f"{name}.out", "wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    [program, *arguments], env=self.environment, stdout=output, stderr=output
                )
            )

    def _check(self, end: float) -> None:
        """Waits briefly. Raises CannotStart when a daemon has ended, or after too long a time."""
        time.sleep(0.1)
        if time.monotonic() > end or any(daemon.poll() is not None for daemon in self._daemons):
            last = [
                (path.name, path.read_text().strip().splitlines()[-1:])
                for path in sorted(self.here.glob("*.out"))
            ]
            raise CannotStart(f"the daemons do not start here: {last}")

    def ask(self, *command: str, check: bool = True, **environment: str) -> str:
        """Returns the output of a command."""
        done = subprocess.run(
            command,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def wait(self, job: str) -> None:
        """Waits until a job, with all tasks of its array, has left the queue."""
        end = time.monotonic() + PATIENCE
        while self.ask("squeue", "--noheader", "--jobs", job, check=False):
            assert time.monotonic() < end, self.ask("squeue", "--long")
            time.sleep(0.2)

    def stop(self) -> None:
        if len(self._daemons) == 3:
            self.ask("scancel", "--user", getpass.getuser(), "--signal=KILL", "--full", check=False)
            self.ask("scancel", "--user", getpass.getuser(), check=False)
            end = time.monotonic() + 20
            while self.ask("squeue", "--noheader", check=False) and time.monotonic() < end:
                time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.here, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
