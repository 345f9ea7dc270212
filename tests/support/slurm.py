"""A real Slurm cluster of one node on loopback, for tests: munge, slurmctld and slurmd, as Debian packages them.

Its two GPUs are devices that every machine has: Slurm counts and assigns them as it does real ones.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
GPUS = ("/dev/null", "/dev/zero")
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
KillWait=2
MinJobAge=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:{n_gpus} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Return why a cluster can't be started, or None."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed (apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "Slurm's daemons must run as root"


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """Start the cluster, and stop it at the end; commands find it by SLURM_CONF."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        Path(folder).chmod(0o755)  # munge runs as another user
        with _daemons(Path(folder)):
            yield


@contextlib.contextmanager
def _daemons(folder: Path) -> Iterator[None]:
    host = socket.gethostname().split(".")[0]
    with socket.socket() as a, socket.socket() as b:  # find two free ports
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        ports = a.getsockname()[1], b.getsockname()[1]
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(parents=True)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, folder=folder, ports=ports, n_gpus=len(GPUS)))
    (folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in GPUS))
    os.environ["SLURM_CONF"] = str(conf)
    processes = []
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    subprocess.run(["chown", "-R", "munge:munge", str(folder / "munge")], check=True)
    for path, mode in ((key, 0o400), (folder / "munge", 0o755)):
        path.chmod(mode)
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge/socket"]
    munge += [f"--{name}-file={folder}/munge/{name}" for name in ("pid", "seed", "log")]
    try:
        as_munge = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups"]
        processes.append(subprocess.Popen([*as_munge, *munge], **QUIET))
        _until((folder / "munge" / "socket").exists, "munged", folder)
        processes += [subprocess.Popen([name, "-D", "-f", str(conf)], **QUIET) for name in ("slurmctld", "slurmd")]
        _until(_idle, "slurmctld and slurmd", folder)
        yield
    finally:
        subprocess.run(["scancel", "--user=root"], check=False, timeout=30)
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
        os.environ.pop("SLURM_CONF", None)


def _idle() -> bool:
    done = subprocess.run(["sinfo", "-h", "-o", "%T"], check=False, capture_output=True, text=True)
    return "idle" in done.stdout


def _until(ready: Callable[[], bool], what: str, folder: Path) -> None:
    for _ in range(300):
        if ready():
            return
        time.sleep(0.1)
    logs = "\n".join(p.read_text(errors="replace")[-2000:] for p in folder.rglob("*.log"))
    raise RuntimeError(f"{what} did not come up\n{logs}")
