"""A Slurm of one machine: controller, daemon of one node with two slots, and munge, on loopback."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scancel", "scontrol")

_CONF = """
ClusterName=tiny
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
KillWait=5
UnkillableStepTimeout=600
MinJobAge=2
ReturnToService=2
SchedulerParameters=sched_interval=2,batch_sched_delay=0,requeue_delay=0
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def absent() -> list[str]:
    """Programs that Slurm needs and that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Slurm:
    """The cluster; a context. Its commands find it by ``environment``.

    Args:
        folder: for its files, of a short path: sockets' names are of some 100 letters at most.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        conf = folder / "slurm.conf"
        host = socket.gethostname().partition(".")[0]
        names = {"user": getpass.getuser(), "host": host, "folder": folder, "ports": _free_ports()}
        conf.write_text(_CONF.format(**names))
        self.environment = {"SLURM_CONF": str(conf)}
        self._processes: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Slurm":
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        files = {"key-file": key, "socket": self.folder / "munge.socket"}
        files |= {f"{x}-file": self.folder / f"munge.{x}" for x in ("log", "pid", "seed")}
        self._start(
            "munged",
            "--foreground",
            "--force",
            *(f"--{name}={path}" for name, path in files.items()),
        )
        _wait(files["socket"].exists)
        self.start_controller()
        self._start("slurmd", "-D")
        _wait(lambda: "idle" in self.call("sinfo", "--noheader", "--format=%T"))
        return self

    def __exit__(self, *error: object) -> None:
        if "slurmctld" in self._processes:
            self.call("scancel", "--me", "--signal=KILL", "--full")
            time.sleep(1)
        for process in reversed(self._processes.values()):
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    def start_controller(self) -> None:
        """Start the controller, which takes its state from its folder."""
        self._start("slurmctld", "-D")

    def stop_controller(self) -> None:
        """End the controller; jobs go on."""
        process = self._processes.pop("slurmctld")
        process.terminate()
        process.wait(30)

    def call(self, *command: str) -> str:
        """What a command of Slurm prints."""
        env = os.environ | self.environment
        return subprocess.run(command, env=env, capture_output=True, text=True).stdout

    def _start(self, program: str, *arguments: str) -> None:
        with (self.folder / f"{program}.out").open("a") as out:
            self._processes[program] = subprocess.Popen(
                [shutil.which(program), *arguments],
                env=os.environ | self.environment,
                stdout=out,
                stderr=out,
            )


def _free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as two:
        for x in (one, two):
            x.bind(("127.0.0.1", 0))
        return [x.getsockname()[1] for x in (one, two)]


def _wait(condition: object, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "Slurm does not start"
        time.sleep(0.1)
