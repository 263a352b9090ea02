"""Set this project up in its own ``.venv`` and run it: ``python3 bootstrap.py demo`` or ``python3 bootstrap.py test``.

Standard library only, so that it works on a bare machine with Python, pip and git. Nothing outside the clone changes:
no package reaches the system's Python, and no environment needs to be activated. When nothing changed since the last
call, the command starts at once; a set-up that was interrupted is made anew. Arguments after ``demo`` go to
``torchgeo-debias demo``, those after ``test`` to pytest.
"""

# Up to the version check, nothing may be newer than Python 3.6 (not even a `from __future__` line): an old Python must
# get as far as the sentence that says what to do.
import ast
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

if sys.version_info < (3, 11):  # noqa: UP036 - users may start this file with any Python
    version = ".".join(map(str, sys.version_info[:2]))
    print(f"bootstrap.py needs Python 3.11 or newer, but this is Python {version}: use a newer one.", file=sys.stderr)
    sys.exit(2)

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
DISCARDED = ROOT / ".venv-discarded"
SCRIPTS = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = SCRIPTS / ("python.exe" if os.name == "nt" else "python")
UNFINISHED = VENV / "bootstrap-unfinished"
EXTRAS = {"demo": "demo", "test": "dev"}
QGIS_TESTS = "qgis_tests/run.py"
CHECKS = (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",), ("lint-imports",))

# What uv calls the settings of pip that say where packages come from. `find-links` stays out on purpose: a local file
# of one package, once preferred over its sibling on the index, makes a torch and torchvision that do not fit together.
UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}


class SetupError(Exception):
    """The set-up cannot go on; the text is one sentence for the user."""


def say(text: str) -> None:
    """Print a line of our own, in order with the output of the commands that we start."""
    print(text, flush=True)


def uv_environment(pip_config: str) -> dict[str, str]:
    """Translate the output of ``pip config list`` into environment variables for uv, which does not read pip's files.

    The values may hold credentials: they are handed on and never printed.
    """
    environment = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # as pip does: the best version of all indexes together
    for section in ("global.", "install.", ":env:."):  # later ones win, as in pip
        for line in pip_config.splitlines():
            name, _, value = line.partition("=")
            variable = UV_NAMES.get(name.removeprefix(section))
            if name.startswith(section) and variable:
                environment[variable] = " ".join(ast.literal_eval(value).split())
    return environment


def digest(extras: str) -> str:
    """Name everything that an installation depends on; the folder counts, as installed scripts hold its path."""
    parts = [
        sys.version,
        str(ROOT),
        extras,
        *((ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt")),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def succeeds(*command: str | Path, quiet: bool = False, env: dict[str, str] | None = None) -> bool:
    """Run a command in the project's folder and tell whether it succeeded."""
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, cwd=ROOT, env=env, stdout=output, stderr=output, check=False).returncode == 0


def venv_is_sound() -> bool:
    """Tell whether ``.venv`` was never left half made, works, and belongs to the Python that runs this file."""
    # The prefix matters: without its pyvenv.cfg, that python would be the system's, and pip would install there.
    probe = f"import sys; sys.exit(sys.prefix == sys.base_prefix or sys.version_info[:2] != {sys.version_info[:2]})"
    return not UNFINISHED.exists() and PYTHON.exists() and succeeds(PYTHON, "-c", probe, quiet=True)


def make_venv() -> None:
    """Make ``.venv`` without pip, which is the part that bare Debian can do too; an old one goes away first."""
    if VENV.exists():
        say("Making .venv anew: it was left unfinished, or belongs to another Python.")
        VENV.rename(DISCARDED)  # at one stroke: a half-deleted .venv could pass for a good one
    shutil.rmtree(DISCARDED, ignore_errors=True)
    if not succeeds(sys.executable, "-m", "venv", "--without-pip", VENV):
        raise SetupError(f"{sys.executable} cannot make a virtual environment: install the venv module of your Python.")


def ensure_pip() -> None:
    """Put pip into ``.venv``: the one that Python carries or, where Debian has split that off, by the system's pip."""
    if succeeds(PYTHON, "-c", "import pip", quiet=True) or succeeds(PYTHON, "-m", "ensurepip", quiet=True):
        return
    if not succeeds(sys.executable, "-m", "pip", "--python", PYTHON, "install", "--quiet", "pip"):
        raise SetupError(
            f"{sys.executable} has neither ensurepip nor a working pip: install python3-venv or python3-pip."
        )


def install(extras: str) -> None:
    """Install this project, editable, with its extras."""
    put_into(PYTHON, "-e", f".[{extras}]")


def put_into(python: Path, *requirements: str) -> None:
    """Install packages for a Python with the tools of ``.venv``: by uv, else by pip; the versions are equal."""
    requirements = ("-c", "constraints.txt", *requirements)
    pip = (PYTHON, "-m", "pip")
    # The constraints reach the build environments too. A relative name, since pip splits these values at spaces.
    env = os.environ | {"PIP_CONSTRAINT": "constraints.txt", "PIP_BUILD_CONSTRAINT": "constraints.txt", "PIP_USER": "0"}
    if succeeds(*pip, "install", "-qq", "uv", env=env):
        listing = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)
        uv = (PYTHON, "-m", "uv", "pip", "install", "--python", python, "--compile-bytecode")
        uv_env = uv_environment(listing.stdout) | os.environ
        if succeeds(*uv, "--build-constraints", "constraints.txt", *requirements, env=uv_env):
            return
    say("Installing with pip instead of uv, which takes some minutes more.")
    if not succeeds(*pip, "--python", python, "install", *requirements, env=env):
        raise SetupError(
            "The packages could not be installed: see pip's message above, then run the same command again."
        )


def set_up(command: str) -> None:
    """Bring ``.venv`` to where a command needs it; costs next to nothing when it is there already."""
    extras = EXTRAS[command]
    stamp = VENV / f"bootstrap-{command}"
    wanted = digest(extras)
    sound = venv_is_sound()
    if sound and stamp.exists() and stamp.read_text() == wanted:
        return
    say("Setting up .venv: minutes on a first run, and about 7 GB of disk.")
    if not sound:
        make_venv()
    UNFINISHED.touch()
    ensure_pip()
    install(extras)
    stamp.write_text(wanted)
    UNFINISHED.unlink()


def lock(file: IO[str]) -> None:
    """Wait for a bootstrap that runs in another terminal; it ends with the file's closing. Not on Windows."""
    if os.name != "nt":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def demo(arguments: list[str]) -> int:
    """Run the main job; returns its exit code."""
    return subprocess.run([SCRIPTS / "torchgeo-debias", "demo", *arguments], check=False).returncode


def test(arguments: list[str]) -> int:
    """Run every check, whatever the ones before it said; returns 0 or not. Arguments choose among pytest's alone."""
    failed = []
    for name, *options in CHECKS:
        title = " ".join([name, *options])
        say(f"== {title}")
        if not succeeds(SCRIPTS / name, *options):
            failed.append(title)
    if not arguments:
        say("== QGIS plugin")
        if not succeeds(PYTHON, QGIS_TESTS):
            failed.append("QGIS plugin")
    say("== pytest" if not failed else f"== pytest, after FAILED: {', '.join(failed)}")
    pytest: list[str | Path] = [SCRIPTS / "pytest", "-n", "2", "--durations=10", *arguments]
    return subprocess.run(pytest, cwd=ROOT, check=False).returncode or int(bool(failed))


def main(arguments: list[str]) -> int:
    """Set up and run the command that the arguments name; returns the exit code."""
    commands = {"demo": demo, "test": test}
    if not arguments or arguments[0] not in commands:
        say("usage: python3 bootstrap.py demo|test [ARGUMENTS...]")
        return 2
    try:
        with Path(__file__).open() as file:
            lock(file)
            set_up(arguments[0])
        return commands[arguments[0]](arguments[1:])
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
