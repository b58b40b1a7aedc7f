"""Warm commands: real processes, compared with what the same command does by itself."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import servers
from notebook_files import last_run, write_notebook
from test_cli import write_project
from test_kernels import HEAVY, is_gone, wait_until, write_module

import mlops_lib
from mlops_lib.engines import warm
from mlops_lib.project import Project

pytestmark = pytest.mark.skipif(not warm.is_supported(), reason="commands are forked on Linux only")

PYTHON = str(Path(sys.executable).with_name("python"))  # the one that the installed command names
MLOPS = str(Path(sys.executable).with_name("mlops"))
# What a server imports beside ``HEAVY``; kernels need it, commands do not.
MORE = ("IPython", "ipykernel", "tornado")
# An installed command whose work is the test's own: what the real one does, with another body.
TOOL = """
import os, sys
from mlops_lib.cli import commands as cli
from mlops_lib.engines.warm import client
client.COMMAND_TIMEOUT_S = float(os.environ.get("TOOL_TIMEOUT_S", "30"))
IS_WARM = hasattr(sys.modules["__main__"], "__warm__")
def main():
    exec(open(os.path.join(os.path.dirname(__file__), "body.py")).read(), globals())
cli.main = main
sys.exit(cli.entry())
"""


def start_server(directory: Path) -> int:
    """Start the server that the installed command would ask, and return its process number."""
    code = "from mlops_lib.engines import warm; warm.prepare().join()"
    subprocess.run([PYTHON, "-c", code], check=True)
    (record,) = directory.glob("*.json")
    return int(json.loads(record.read_text())["pid"])


@pytest.fixture(scope="module", autouse=True)
def server_pid() -> Iterator[int]:
    """Give the commands of this file a server of their own; yield its process number."""
    with servers.own_kernel_server("MLOPS_WARM", "PYTHONUNBUFFERED") as directory:
        yield start_server(directory)


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[int]:
    """Give one test that does something to its server one of its own, with nothing to import; yield its number."""
    directory = Path(tempfile.mkdtemp(prefix="mk-"))
    for name in (*HEAVY, *MORE):
        write_module(tmp_path / "light", name, "raise ImportError")
    monkeypatch.setenv("MLOPS_RUNTIME_DIR", str(directory))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "light"))
    yield start_server(directory)
    directory.chmod(0o700)
    warm.stop()
    shutil.rmtree(directory)


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tool").write_text(TOOL)
    return tmp_path / "bin/tool"


def command(tool: Path, body: str, *options: str) -> list[str]:
    """Return the command line that runs ``body`` by a tool."""
    (tool.parent / "body.py").write_text(body)
    return [PYTHON, *options, str(tool), "go"]


def run(command: list[str], *, is_warm: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **options.pop("env", {}), **({} if is_warm else {"MLOPS_WARM": "0"})}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env, **options)


def begin(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def is_forked(pid: int, server: int) -> bool:
    return psutil.Process(psutil.Process(pid).ppid()).ppid() == server  # one process stands between


# --- the same as without a server -----------------------------------------------------------------------------------


@pytest.fixture
def environ(project: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the toy project to the installed command; return the file in which each command says where it ran."""
    file, told = write_project(project), project.root / "told"
    where = f"import sys\nPath({str(told)!r}).write_text(str(hasattr(sys.modules['__main__'], '__warm__')))\n"
    file.write_text(file.read_text().replace("from mlops_lib.gates", f"{where}from mlops_lib.gates", 1))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.tracking_uri)
    monkeypatch.setenv("MLOPS_PROJECT", str(file))
    monkeypatch.setenv("MLOPS_ACTOR", "ada")
    monkeypatch.chdir(project.root)
    return told


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["history"], 0),
        (["models", "--json"], 0),
        (["show", "1"], 0),
        (["promote", "1", "staging"], 3),
        (["history", "prd"], 1),
        (["--debug", "history", "prd"], 1),
        (["run", "nothing"], 1),
        (["promote", "one", "prod"], 1),
        (["nonsense"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_warm_command_says_and_ends_as_a_cold_one_does(environ: Path, arguments: list[str], code: int) -> None:
    cold = run([MLOPS, *arguments], is_warm=False)
    assert cold.returncode == code, cold.stderr
    assert not environ.exists() or environ.read_text() == "False"
    forked = run([MLOPS, *arguments])
    assert (forked.stdout, forked.stderr, forked.returncode) == (cold.stdout, cold.stderr, cold.returncode)
    assert not environ.exists() or environ.read_text() == "True"
    assert environ.exists() or code == 2


def test_a_warm_process_looks_like_a_cold_one_from_inside(tool: Path, tmp_path: Path) -> None:
    body = """
import json, locale, resource, signal, tempfile, threading, gc
import matplotlib, numpy, pandas, jsonschema
print(json.dumps({
    'argv': sys.argv, 'path': sys.path, 'flags': str(sys.flags), 'executable': sys.executable, 'cwd': os.getcwd(),
    'main': sorted(vars(sys.modules['__main__']).keys() & {'__file__', '__name__', 'cli'}), 'umask': os.umask(0),
    'env': dict(os.environ), 'limits': [resource.getrlimit(i) for i in range(16)], 'gc': gc.isenabled(),
    'signals': [str(signal.getsignal(i)).split(' at ')[0] for i in (1, 2, 13, 15, 17, 20)],
    'streams': [(s.encoding, s.errors, s.line_buffering, s.fileno()) for s in (sys.stdin, sys.stdout, sys.stderr)],
    'seekable': [s.seekable() for s in (sys.stdin, sys.stdout, sys.stderr)], 'tmp': tempfile.gettempdir(),
    'locale': locale.getlocale(), 'threads': threading.active_count(),
    'pandas': [str(pandas.get_option(f'display.{n}')) for n in ('max_columns', 'width', 'notebook_repr_html')],
    'is_warm': IS_WARM,
}))
import matplotlib.pyplot
print(matplotlib.get_backend())
"""

    def restrict() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        resource.setrlimit(resource.RLIMIT_NOFILE, (77, resource.getrlimit(7)[1]))

    options: dict[str, Any] = {
        "cwd": tmp_path,
        "umask": 0o027,
        "env": {"COLOUR": "blue", "TMPDIR": str(tmp_path), "TZ": "Asia/Tokyo"},
        "preexec_fn": restrict,
    }
    forked, cold = (run(command(tool, body), is_warm=w, input="", **options) for w in (True, False))
    assert forked.stderr == cold.stderr == ""
    (a, backend), (b, other) = ((json.loads(d.stdout.split("\n")[0]), d.stdout.split("\n")[1]) for d in (forked, cold))
    assert (a.pop("is_warm"), b.pop("is_warm")) == (True, False)
    assert b["env"].pop("MLOPS_WARM") == "0"
    added = a["env"].keys() - b["env"].keys()
    assert {name.partition("_")[0] for name in added} <= {"KMP", "PYDEVD"}  # what scikit-learn and the debugger set
    a["env"] = {name: value for name, value in a["env"].items() if name not in added}
    assert a == b
    assert backend == other == "agg"


def test_standard_files_are_the_callers(tool: Path) -> None:
    body = "print(IS_WARM, input().upper(), *(os.isatty(i) for i in range(3))); print('bad', file=sys.stderr)"
    done = run(command(tool, body), input="hello\n")
    assert (done.stdout, done.stderr) == ("True HELLO False False False\n", "bad\n")


@pytest.fixture
def unbuffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it in the environment before ``light`` starts the server."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")


@pytest.mark.usefixtures("unbuffered", "light")
def test_unbuffered_output_is_unbuffered(tool: Path) -> None:
    streams = "(sys.stdin, sys.stdout, sys.stderr)"
    body = f"print([(s.write_through, s.line_buffering, type(s.buffer).__name__) for s in {streams}])"
    forked, cold = (run(command(tool, body), is_warm=is_warm) for is_warm in (True, False))
    assert forked.stdout == cold.stdout
    assert "FileIO" in forked.stdout
    assert run(command(tool, "print(IS_WARM)")).stdout == "True\n"


@pytest.mark.parametrize("is_warm", [True, False])
def test_on_a_terminal_colours_size_and_input_are_the_terminals(tool: Path, is_warm: bool) -> None:
    body = """
import click
size = os.get_terminal_size()
print(IS_WARM, *(s.isatty() for s in (sys.stdin, sys.stdout, sys.stderr)), size.columns, sys.stdout.line_buffering)
click.secho(input('name? '), fg='red')
"""
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "cols", "77", "-echo"], stdin=theirs, check=True)
    env = {**os.environ, **({} if is_warm else {"MLOPS_WARM": "0"})}
    with subprocess.Popen(command(tool, body), stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.write(ours, b"ada\n")
        assert process.wait(60) == 0
    os.close(theirs)
    said = b""
    while select.select([ours], [], [], 0)[0]:
        try:
            said += os.read(ours, 1000)
        except OSError:  # the other side is closed
            break
    os.close(ours)
    assert said.decode() == f"{is_warm} True True True 77 True\r\nname? \x1b[31mada\x1b[0m\r\n"


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("raise ValueError('blue')", 1),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("sys.exit('a reason')", 1),
        ("sys.exit(7)", 7),
        ("sys.exit()", 0),
        ("os.kill(os.getpid(), 15)", -15),
        ("os.kill(os.getpid(), 9)", -9),
        ("import atexit; atexit.register(print, 'bye', end='')", 0),
        ("from threading import Timer; Timer(0.2, print, ('late',)).start()", 0),
    ],
)
def test_every_end_is_the_same(tool: Path, end: str, code: int) -> None:
    cold, forked = (run(command(tool, f"print('begun', flush=True); {end}"), is_warm=w) for w in (False, True))
    assert (cold.stdout.split()[0], cold.returncode) == ("begun", code)
    assert (forked.stdout, forked.stderr, forked.returncode) == (cold.stdout, cold.stderr, cold.returncode)


def test_an_edited_module_is_seen_by_the_next_command(tool: Path) -> None:
    copy = tool.parent / "mlops_lib"
    shutil.copytree(Path(mlops_lib.__file__).parent, copy)
    for number in (1, 2):
        (copy / "__init__.py").write_text(f"__version__ = 'edited{'!' * number}'")
        (tool.parent / "beside.py").write_text(f"NUMBER = {'1' * number}")
        done = run(command(tool, "import mlops_lib, beside; print(IS_WARM, mlops_lib.__version__, beside.NUMBER)"))
        assert done.stdout == f"True edited{'!' * number} {'1' * number}\n", done.stderr


def test_a_notebook_run_by_a_warm_command_has_a_warm_kernel_of_the_same_server(
    environ: Path, project: Project, server_pid: int
) -> None:
    cell = "import os, psutil\nfrom mlops_lib import tracking\n"
    cell += "tracking.record_result(parent=psutil.Process(os.getppid()).ppid())"
    for name in ("a", "b"):
        write_notebook(project.root / "notebooks", cell, parameters=None, name=name)
    one = run([MLOPS, "run", "a", "--json"])
    assert one.returncode == 0, one.stderr
    assert json.loads(one.stdout)["result"] == {"parent": server_pid}
    assert environ.read_text() == "True"
    two = run([MLOPS, "run", "a", "b", "--json"])
    assert [record["result"] for record in json.loads(two.stdout)] == [{"parent": server_pid}] * 2, two.stderr
    wait_until(lambda: psutil.Process(server_pid).children() == [])


# --- signals and deaths ---------------------------------------------------------------------------------------------

WAIT = "import subprocess, time\nprint(os.getpid(), subprocess.Popen(['sleep', '600']).pid, flush=True)\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_client_stops_the_notebook_with_true_evidence(
    environ: Path, project: Project, tmp_path: Path, number: signal.Signals
) -> None:
    marker = tmp_path / "running"
    cell = f"import time\nopen({str(marker)!r}, 'w').close()\ntime.sleep(600)"
    write_notebook(project.root / "notebooks", cell, parameters=None, name="slow")
    process = begin([MLOPS, "run", "slow"])
    wait_until(lambda: marker.exists() or process.poll() is not None)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert environ.read_text() == "True"
    assert (process.returncode, out) == (1, ""), err
    assert number.name in err
    assert last_run(project).info.status == "KILLED"


def test_a_command_dies_with_its_group_when_its_client_is_killed(server_pid: int, tool: Path) -> None:
    process = begin(command(tool, WAIT + "time.sleep(600)"))
    pids = [int(pid) for pid in read_line(process).split()]
    assert is_forked(pids[0], server_pid)
    process.kill()
    process.communicate()
    for pid in pids:
        wait_until(lambda pid=pid: is_gone(pid))  # type: ignore[misc]


def test_a_command_and_its_client_stop_and_go_on_together(tool: Path) -> None:
    process = begin(command(tool, WAIT + "time.sleep(600)"))
    pids = [process.pid, *(int(pid) for pid in read_line(process).split())]
    process.send_signal(signal.SIGTSTP)
    wait_until(lambda: all(psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in pids))
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: all(psutil.Process(pid).status() == psutil.STATUS_SLEEPING for pid in pids))
    process.terminate()
    process.communicate()
    assert process.returncode == -signal.SIGTERM
    wait_until(lambda: all(is_gone(pid) for pid in pids))


def test_an_ignored_hangup_is_ignored_by_the_command_too(tool: Path) -> None:
    process = begin(["nohup", *command(tool, "print(IS_WARM, flush=True); import time; time.sleep(0.5); print('end')")])
    assert read_line(process) == "True"
    process.send_signal(signal.SIGHUP)
    assert process.communicate()[0] == "end\n"


def test_a_finished_command_takes_nothing_of_others_with_it(tool: Path) -> None:
    long = begin(command(tool, WAIT + "time.sleep(600)"))
    pids = [int(pid) for pid in read_line(long).split()]
    assert run(command(tool, "print(os.getpgid(0))")).returncode == 0
    assert not any(is_gone(pid) for pid in pids)
    long.kill()
    long.communicate()


def test_a_command_ends_with_a_server_that_is_stopped(light: int, tool: Path) -> None:
    process = begin(command(tool, WAIT + "time.sleep(600)"))
    pids = [int(pid) for pid in read_line(process).split()]
    (server,) = warm.status()
    assert (len(server["kernels"]), len(server["commands"])) == (1, 0)  # it is not called mlops
    assert "1 kernels, 0 commands" in run([MLOPS, "kernels", "stop"]).stdout
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("The warm server that ran 'mlops go' has ended, and the command with it.")
    for pid in pids:
        wait_until(lambda pid=pid: is_gone(pid))  # type: ignore[misc]


def test_status_tells_commands_from_kernels(light: int, tool: Path) -> None:
    renamed = tool.rename(tool.with_name("mlops"))
    with begin(command(renamed, WAIT + "time.sleep(600)")) as process:
        pid = int(read_line(process).split()[0])
        (server,) = json.loads(run([MLOPS, "kernels", "status", "--json"]).stdout)
        assert ([record["pid"] for record in server["commands"]], server["kernels"]) == ([pid], [])
        process.kill()


# --- without a server, or with one that is broken --------------------------------------------------------------------


def test_nothing_is_started_for_a_command(light: int, tool: Path) -> None:
    warm.stop()
    done = run(command(tool, "print(IS_WARM)"))
    assert (done.stdout, done.stderr) == ("False\n", "")
    assert warm.status() == []


@pytest.mark.parametrize("options", [["-O"], ["-Wdefault"]])
def test_interpreter_options_are_not_lost(tool: Path, options: list[str]) -> None:
    assert run(command(tool, "print(IS_WARM)", *options)).stdout == "False\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["history", "-h"], ["--version"], ["kernels", "status"], ["--debug", "kernels", "status"]]
)
def test_help_and_what_handles_the_server_run_in_the_callers_process(
    environ: Path, light: int, tool: Path, arguments: list[str]
) -> None:
    imported = run([sys.executable, "-X", "importtime", MLOPS, *arguments]).stderr.splitlines()
    assert not [line for line in imported if line.endswith(("| mlflow", "| pandas"))]
    (path,) = Path(os.environ["MLOPS_RUNTIME_DIR"]).glob("*.sock")
    warm.stop()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert run([MLOPS, *arguments]).returncode == 0
        assert not select.select([listener], [], [], 0)[0], "nobody has called"
        run(command(tool, ""), env={"TOOL_TIMEOUT_S": "0.2"})
        assert select.select([listener], [], [], 0)[0], "where the server of other commands is"
    assert not environ.exists()


def test_a_version_that_is_asked_for_is_no_reason_to_run_in_the_callers_process(tool: Path) -> None:
    assert run([*command(tool, "print(IS_WARM)"), "score", "--version", "1"]).stdout == "True\n"


def test_a_server_that_does_not_answer_in_time_never_runs_what_ran_here(
    light: int, tool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOL_TIMEOUT_S", "0.2")
    log = tool.parent / "log"
    os.kill(light, signal.SIGSTOP)
    done = run(command(tool, f"print(IS_WARM, file=open({str(log)!r}, 'a'))"))
    os.kill(light, signal.SIGCONT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    monkeypatch.setenv("TOOL_TIMEOUT_S", "30")
    assert run(command(tool, f"print(IS_WARM, file=open({str(log)!r}, 'a'))")).returncode == 0
    wait_until(lambda: psutil.Process(light).children() == [])
    assert log.read_text() == "False\nTrue\n"


def hang_up(listener: socket.socket) -> None:
    listener.accept()[0].close()


@pytest.mark.parametrize("fault", ["killed", "entered by others", "hangs up"])
def test_a_broken_server_is_done_without(light: int, tool: Path, fault: str) -> None:
    directory = Path(os.environ["MLOPS_RUNTIME_DIR"])
    if fault == "killed":
        os.kill(light, signal.SIGKILL)
    elif fault == "entered by others":
        directory.chmod(0o755)
    with contextlib.ExitStack() as stack:
        if fault == "hangs up":
            (path,) = directory.glob("*.sock")
            warm.stop()
            other = stack.enter_context(socket.socket(socket.AF_UNIX))
            other.bind(str(path))
            other.listen()
            threading.Thread(target=hang_up, args=(other,)).start()
        done = run(command(tool, "print(IS_WARM)"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_a_caller_without_standard_files_is_served_by_itself(tool: Path, closed: str) -> None:
    line = command(tool, "open('is_warm', 'w').write(str(IS_WARM))")
    done = run(["sh", "-c", f'"$@" {closed}', "sh", *line], cwd=tool.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tool.parent / "is_warm").read_text() == "False"


def test_a_folder_that_is_gone_is_left_to_the_command(tool: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    line = command(tool, "print(IS_WARM)")
    done = run(["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", *line], cwd=tmp_path / "gone")
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_kernels_still_find_jsonschemas_grammar() -> None:
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", env={**os.environ, **warm.environment()})
    with contextlib.ExitStack() as stack:
        stack.callback(manager.shutdown_kernel, now=True)
        stack.callback(client.stop_channels)
        said: list[str] = []
        client.execute_interactive(
            "import sys; print('nbformat' in sys.modules, 'jsonschema' in sys.modules); import nbformat; "
            "print('rfc3987_syntax' in sys.modules)",
            output_hook=lambda message: said.append(message["content"].get("text", "")),
            timeout=60,
        )
    assert "".join(said).split() == ["False", "False", "True"]
