"""Make `.venv` what pyproject.toml and constraints.txt say; do nothing when it is already.

Any number of processes may run this at once: one works, the others wait for it. It runs on the
Python of the machine, before anything is installed, and parses on old ones to tell them so.
"""

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STATED_IN = ("pyproject.toml", "constraints.txt", os.path.join(".ci", "venv.py"))


def main(venv):
    """Install into `venv` unless its stamp says that the same was installed before."""
    if sys.version_info < (3, 11):
        sys.exit(
            "dbos_async needs Python 3.11 or newer, and {} is {}.{}: "
            "name another one, as in `make test PYTHON=python3.11`.".format(
                sys.executable, *sys.version_info
            )
        )
    os.chdir(ROOT)
    venv = os.path.abspath(venv)
    with open(venv + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp, wanted = os.path.join(venv, "installed"), wanted_stamp()
        found = stamp_of(stamp)
        if found != wanted:
            install(venv, anew=found.split("\n")[0] != wanted.split("\n")[0])
            with open(stamp, "w") as file:
                file.write(wanted)
        os.utime(stamp)


def wanted_stamp():
    """What decides the content: this Python and its place, then the files that state it."""
    digest = hashlib.sha256()
    for name in STATED_IN:
        with open(name, "rb") as file:
            digest.update(file.read())
    return "{} {} {}\n{}\n".format(sys.version.split()[0], sys.executable, ROOT, digest.hexdigest())


def stamp_of(path):
    """What was installed; empty where there is nothing, or making it was cut short."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def install(venv, *, anew):
    """Install this project into the environment, editable, with all that its development needs."""
    if importlib.util.find_spec("ensurepip") is None:
        sys.exit(
            "This Python cannot make virtual environments: install its venv package "
            "(on Debian and Ubuntu: apt install python3-venv), then run make again."
        )
    print("Installing the development environment into {} ...".format(os.path.relpath(venv)))
    if anew:
        run(sys.executable, "-m", "venv", "--clear", venv)
    pip = [os.path.join(venv, "bin", "python"), "-m", "pip", "--disable-pip-version-check"]
    pip += ["install", "--quiet", "-c", "constraints.txt"]
    run(*pip, "hatchling", "editables")
    run(*pip, "--no-build-isolation", "-e", ".[embedded,payloads,dev]")


def run(*command):
    """Run it, or stop with its exit code: it has said itself what is wrong."""
    code = subprocess.call(command)
    if code:
        sys.exit("Could not install the development environment: {}".format(" ".join(command)))


if __name__ == "__main__":
    main(sys.argv[1])
