"""Warm kernels: real kernels, real clients, a server of their own for the whole file and lighter ones for its edges."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager, start_new_async_kernel, start_new_kernel
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from mlops_lib.engines import warm
from mlops_lib.engines.warm import provisioner, servers
from mlops_lib.engines.warm.keys import compute_key, runtime_directory
from mlops_lib.errors import WarmKernelError

pytestmark = pytest.mark.skipif(not warm.is_supported(), reason="kernels are forked on Linux only")

IS_WARM = "open('/proc/self/comm').read() == 'mlops-kernel\\n'"
HEAVY = ("numpy", "pandas", "pyarrow", "scipy", "sklearn", "skops", "matplotlib", "mlflow", "git", "alembic")
HEAVY += ("nbclient", "nbconvert", "nbformat", "pydantic", "sqlalchemy")


def new_runtime_directory() -> Path:
    """Unlike tmp_path it is short enough for a socket."""
    return Path(tempfile.mkdtemp(prefix="mk-"))


@pytest.fixture(scope="module", autouse=True)
def directory_of_servers() -> Iterator[Path]:
    """Give the tests of this file a server, a kernelspec and an IPython history of their own."""
    directory = new_runtime_directory()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOPS_RUNTIME_DIR", str(directory))
        patch.setenv("IPYTHONDIR", str(directory / "ipython"))
        patch.setenv("JUPYTER_PATH", str(directory / "share" / "jupyter"))
        patch.setenv("MLFLOW_DISABLE_AGENT_HINT", "true")
        patch.setenv("MLOPS_WARM", "wait")
        warm.install(directory)
        yield directory
        warm.stop()
    shutil.rmtree(directory)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Give one test a runtime directory of its own, whose server starts at once as it finds nothing to import."""
    directory = new_runtime_directory()
    for name in HEAVY:
        write_module(tmp_path / "light", name, "raise ImportError")
    monkeypatch.setenv("MLOPS_RUNTIME_DIR", str(directory))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "light"))
    yield directory
    directory.chmod(0o700)
    warm.stop()
    shutil.rmtree(directory)


@pytest.fixture
def explained(capfd: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """Return what the provisioner has said on stderr since the last call."""
    provisioner.explain.cache_clear()
    return lambda: [line for line in capfd.readouterr().err.splitlines() if "plain kernel" in line]


def write_module(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "__init__.py").write_text(text)


@contextlib.contextmanager
def kernel(name: str = "mlops", **kwargs: Any) -> Iterator[Callable[[str], str]]:
    """Start a kernel, yield a function that runs code in it, and kill it. The manager is its attribute ``manager``."""
    manager, client = start_new_kernel(kernel_name=name, **kwargs)

    def run(code: str) -> str:
        texts: list[str] = []
        reply = client.execute_interactive(
            code, output_hook=lambda message: texts.append(read_text(message)), timeout=60
        )
        if reply["content"]["status"] != "ok":
            raise RuntimeError(reply["content"]["ename"])
        return "".join(texts).strip()

    run.manager, run.client = manager, client  # type: ignore[attr-defined]
    try:
        yield run
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def read_text(message: dict[str, Any]) -> str:
    content = message["content"]
    return str(content.get("text") or content.get("data", ""))


def is_warm(run: Callable[[str], str]) -> bool:
    return run(f"print({IS_WARM})") == "True"


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what must come; the time limit of the test ends the wait."""
    while not condition():
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def new_notebook(*cells: str, name: str = "python3") -> Any:
    spec = {"kernelspec": {"name": name, "display_name": name, "language": "python"}}
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=spec)


# --- a kernel like any other ----------------------------------------------------------------------------------------


def test_a_warm_kernel_has_its_heavy_imports_done_and_no_project_code():
    with kernel() as run:
        assert is_warm(run)
        loaded = run("import sys; print(*(name.split('.')[0] for name in sys.modules))").split()
        assert {"mlflow", "pandas", "sklearn", "pyarrow"} < set(loaded)
        assert not {"mlops_lib", "server"} & set(loaded)


def test_a_warm_kernel_looks_like_a_plain_one_from_inside(tmp_path, monkeypatch):
    code = """
        import json, locale, os, resource, signal, sys, tempfile, threading
        import numpy, pandas, scipy.linalg, sklearn.ensemble, threadpoolctl
        shown = ('max_columns', 'max_rows', 'width', 'show_dimensions', 'large_repr', 'notebook_repr_html')
        hidden = {'JPY_PARENT_PID', 'KERNEL_ID'}
        print(json.dumps({
            'path': sys.path, 'argv0': sys.argv[0], 'flags': str(sys.flags), 'executable': sys.executable,
            'main': sorted(name for name in vars(sys.modules['__main__']) if name.startswith('__')),
            'env': {name: value for name, value in os.environ.items() if name not in hidden}, 'cwd': os.getcwd(),
            'umask': os.umask(0), 'limits': [resource.getrlimit(i) for i in range(16)],
            'group': os.getsid(0) == os.getpgid(0),
            'signals': [str(signal.getsignal(i)).split(' at ')[0] for i in (2, 13, 15, 17)], 'nice': os.nice(0),
            'tmp': tempfile.gettempdir(), 'locale': locale.getlocale(), 'oom': open('/proc/self/oom_score_adj').read(),
            'groups': os.getgroups(), 'affinity': sorted(os.sched_getaffinity(0)),
            'stdin': os.readlink('/proc/self/fd/0'),
            'pandas': {name: str(pandas.get_option(f'display.{name}')) for name in shown},
            'threads': sorted((pool['prefix'], pool['num_threads']) for pool in threadpoolctl.threadpool_info()),
            'python_threads': sorted(type(thread).__name__ for thread in threading.enumerate()),
        }))
    """
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    code = "\n".join(line[8:] for line in code.splitlines())
    facts = {}
    for name in ("mlops", "python3"):
        with kernel(name, cwd=str(tmp_path), env={**os.environ, "COLOUR": "blue"}) as run:
            assert is_warm(run) == (name == "mlops")
            facts[name] = json.loads(run(code))
    forked, plain = facts["mlops"], facts["python3"]
    assert (forked.pop("stdin"), plain.pop("stdin")[:5]) == ("/dev/null", "pipe:")  # both are at their end at once
    assert forked.pop("env") == plain.pop("env")
    assert forked == plain


def test_a_server_prepared_in_the_background_is_the_one_that_forks(fresh):
    waiting = warm.prepare()
    assert waiting is not None
    waiting.join()
    assert len(warm.status()) == 1
    prepared = warm.status()[0]["key"]
    with kernel() as run:
        assert run("print(1 + 1)") == "2"
        assert [(server["key"], len(server["kernels"])) for server in warm.status()] == [(prepared, 1)]


def test_the_first_kernel_of_an_environment_is_plain_and_waits_for_no_server(fresh, tmp_path, monkeypatch, explained):
    monkeypatch.delenv("MLOPS_WARM")
    monkeypatch.setattr(servers, "_has_prepared", False)
    write_module(tmp_path / "slow", "numpy", "import time; time.sleep(2); raise ImportError")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'slow'}{os.pathsep}{tmp_path / 'light'}")
    for _ in range(2):
        with kernel() as run:
            assert not is_warm(run)
            assert warm.status() == []
    wait_until(lambda: len(warm.status()) == 1)
    with kernel() as run:
        assert is_warm(run)
    assert explained() == []


def test_kernels_of_one_server_share_no_state():
    with kernel() as one, kernel() as two:
        one("import numpy; numpy.answer = 42; import os; os.environ['ANSWER'] = '42'; os.chdir('/')")
        assert two("import numpy, os; print(hasattr(numpy, 'answer'), 'ANSWER' in os.environ, os.getcwd() == '/')") == (
            "False False False"
        )


def test_kernels_of_one_server_draw_different_random_numbers():
    code = "import random, numpy.random as r; print(random.random(), r.rand(), r.default_rng().random())"
    with kernel() as one, kernel() as two:
        assert not set(one(code).split()) & set(two(code).split())


def test_a_kernel_imports_modules_from_its_working_directory(tmp_path):
    (tmp_path / "local_colours.py").write_text("BLUE = 'blau'")
    with kernel(cwd=str(tmp_path)) as run:
        assert run("import local_colours; print(local_colours.BLUE)") == "blau"


def test_mlflow_follows_the_environment_of_the_client_not_of_the_server():
    for uri in ("http://127.0.0.1:1", "http://127.0.0.1:2"):
        with kernel(env={**os.environ, "MLFLOW_TRACKING_URI": uri}) as run:
            assert run("import mlflow; print(mlflow.get_tracking_uri())") == uri
            assert run("print(mlflow.telemetry.client.get_telemetry_client())") == "None"


def test_a_warm_kernel_plots_reads_parquet_and_computes_in_threads(tmp_path):
    with kernel(cwd=str(tmp_path)) as run:
        assert "image/png" in run("import matplotlib.pyplot as plt; plt.plot([1, 2]);")
        run("import numpy as np, pandas as pd; pd.DataFrame({'a': np.arange(200_000)}).to_parquet('a.parquet')")
        assert run("print(pd.read_parquet('a.parquet').a.sum())") == "19999900000"
        assert run("a = np.ones((600, 600)); print((a @ a).sum())") == "216000000.0"
        assert run(
            "from sklearn.ensemble import HistGradientBoostingClassifier as H, RandomForestClassifier as F\n"
            "X, y = np.random.rand(500, 3), np.arange(500) % 2\n"
            "print(H(max_iter=5).fit(X, y).score(X, y) > 0.5, F(20, n_jobs=2).fit(X, y).score(X, y) > 0.5)"
        ) == "True True"  # fmt: skip


def test_a_matplotlibrc_beside_the_notebook_counts(tmp_path):
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 7")
    with kernel(cwd=str(tmp_path)) as run:
        assert run("import matplotlib; print(matplotlib.rcParams['lines.linewidth'])") == "7.0"


def test_output_goes_where_the_client_asks(tmp_path):
    out, err = (tmp_path / "out").open("wb"), (tmp_path / "err").open("wb")
    with out, err, kernel(stdout=out, stderr=err.fileno()) as run:
        run("import sys; print('to stdout', file=sys.__stdout__); print('to stderr', file=sys.__stderr__)")
    assert ((tmp_path / "out").read_text(), (tmp_path / "err").read_text()) == ("to stdout\n", "to stderr\n")


# --- life and death -------------------------------------------------------------------------------------------------


def test_a_busy_cell_can_be_interrupted():
    with kernel() as run:
        run.client.execute("print('busy', flush=True)\nwhile True: pass")
        wait_until(lambda: run.client.get_iopub_msg(timeout=30)["msg_type"] == "stream")
        run.manager.interrupt_kernel()
        assert run.client.get_shell_msg(timeout=30)["content"]["ename"] == "KeyboardInterrupt"
        assert run("print('alive')") == "alive"


def test_a_restarted_kernel_is_new_and_warm():
    with kernel() as run:
        before = run("answer = 42; import os; print(os.getpid())")
        for now in (True, False):
            run.manager.restart_kernel(now=now)
            run.client.wait_for_ready(timeout=30)
            assert is_warm(run)
            assert run("import os; print(os.getpid(), 'answer' in globals())") not in (
                f"{before} False",
                f"{before} True",
            )
        assert run("print('answer' in globals())") == "False"


def test_a_graceful_shutdown_runs_exit_handlers_and_leaves_no_files(directory_of_servers, tmp_path):
    manager, client = start_new_kernel(kernel_name="mlops", cwd=str(tmp_path))
    client.execute_interactive("import atexit; atexit.register(lambda: open('bye', 'w').write('bye'));")
    client.stop_channels()
    process = manager.provisioner.process
    manager.shutdown_kernel()
    assert (tmp_path / "bye").read_text() == "bye"
    assert process.returncode == 0
    assert is_gone(process.pid)
    assert list(directory_of_servers.glob("k-*")) == []


def test_the_death_of_a_kernel_is_noticed_and_its_exit_status_known():
    with kernel() as run:
        run.client.execute("import os; os.kill(os.getpid(), 9)")
        wait_until(lambda: not run.manager.is_alive())
        assert run.manager.provisioner.process.returncode == -signal.SIGKILL
    with pytest.raises(DeadKernelError):
        NotebookClient(new_notebook("import os; os._exit(3)", name="mlops")).execute()


def test_a_kernel_dies_with_its_whole_group_when_its_client_is_killed():
    code = """
        import subprocess, sys, time
        from jupyter_client.manager import start_new_kernel
        manager, client = start_new_kernel(kernel_name='mlops')
        if __import__('os').fork() == 0: time.sleep(60)  # a fork of the client keeps the connection open
        client.execute_interactive("import os, subprocess; print(os.getpid(), subprocess.Popen(['sleep', '600']).pid)")
        time.sleep(600)
    """
    command = [sys.executable, "-c", "\n".join(line[8:] for line in code.splitlines())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as client:
        assert client.stdout
        pids = [int(pid) for pid in client.stdout.readline().split()]
        assert len(pids) == 2
        assert not any(is_gone(pid) for pid in pids)
        client.kill()
        for pid in pids:
            wait_until(lambda pid=pid: is_gone(pid))
        os.killpg(client.pid, signal.SIGKILL)


def test_a_dead_kernel_leaves_no_children_behind():
    with kernel() as run:
        child = int(run("import os, subprocess; print(subprocess.Popen(['sleep', '600']).pid)"))
        os.kill(run.manager.provisioner.pid, signal.SIGKILL)
        wait_until(lambda: is_gone(child))


def test_kernels_end_with_a_server_that_was_killed(fresh):
    with kernel() as run:
        child = int(run("import subprocess; print(subprocess.Popen(['sleep', '600']).pid)"))
        os.kill(warm.status()[0]["pid"], signal.SIGKILL)
        wait_until(lambda: not run.manager.is_alive())
        wait_until(lambda: is_gone(child) and is_gone(run.manager.provisioner.pid))
        with kernel() as next_run:
            assert is_warm(next_run)
        assert len(warm.status()) == 1


def server_of(pid: int) -> int:
    """Return the server of a kernel: the parent of the one process that stands between."""
    return psutil.Process(psutil.Process(pid).ppid()).ppid()


def test_a_notebook_that_kills_its_parent_ends_itself_alone(fresh):
    with kernel() as victim, kernel() as other:
        other("x = 7")
        victim.client.execute("import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
        wait_until(lambda: not victim.manager.is_alive())
        wait_until(lambda: is_gone(victim.manager.provisioner.pid))
        assert other("print(x)") == "7"
        assert len(warm.status()) == 1
        with kernel() as again:
            assert is_warm(again)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGSEGV])
def test_a_kernels_exit_status_is_that_of_its_signal(fresh, number):
    with kernel() as run:
        os.kill(run.manager.provisioner.pid, number)
        wait_until(lambda: run.manager.provisioner.process.poll() is not None)
        assert run.manager.provisioner.process.returncode == -number


def test_a_signal_that_a_kernel_handles_does_not_end_it(fresh):
    with kernel() as run:
        run("import signal; seen = []; _ = signal.signal(signal.SIGUSR1, lambda n, _: seen.append(n))")
        run.manager.provisioner.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: run("print(len(seen))") == "1")


def test_a_server_without_files_left_goes_on_and_its_kernels_live(fresh, explained):
    with kernel() as run:
        run("x = 7")
        (server,) = warm.status()
        before = psutil.Process(server["pid"]).rlimit(psutil.RLIMIT_NOFILE)
        n_files = psutil.Process(server["pid"]).num_fds()
        for room in (0, 1, 2):  # refused at once, when it looks at the client, when it has forked
            psutil.Process(server["pid"]).rlimit(psutil.RLIMIT_NOFILE, (n_files + room, before[1]))
            with kernel() as plain:
                assert not is_warm(plain)
            assert run("print(x)") == "7"
        psutil.Process(server["pid"]).rlimit(psutil.RLIMIT_NOFILE, before)
        assert psutil.Process(server["pid"]).num_fds() == n_files, "none of those that were refused left one"
        with kernel() as again:
            assert is_warm(again)
    assert "A plain kernel is used" in explained()[0]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small folder")
@pytest.mark.parametrize("spoil", ["full", "read-only"])
def test_a_runtime_folder_that_cannot_be_written_gives_plain_kernels(monkeypatch, explained, spoil):
    folder = new_runtime_directory()
    options = "size=4k,nr_inodes=2,mode=700" if spoil == "full" else "ro,mode=700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a folder")
    try:
        if spoil == "full":
            (folder / "full").write_text("x" * 4096)
        monkeypatch.setenv("MLOPS_RUNTIME_DIR", str(folder))
        with kernel() as run:
            assert not is_warm(run)
            assert run("print(6 * 7)") == "42"
        assert "A plain kernel is used" in explained()[0]
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


# --- the server -----------------------------------------------------------------------------------------------------


def test_status_tells_what_runs_and_stop_ends_it(fresh):
    assert warm.status() == []
    with kernel(cwd="/") as run:
        (server,) = warm.status()
        assert server["python"] == sys.executable
        assert "mlflow" in server["missing"]
        assert [(record["pid"], record["cwd"]) for record in server["kernels"]] == [(run.manager.provisioner.pid, "/")]
        assert warm.stop() == 1
        assert is_gone(server["pid"])
        wait_until(lambda: not run.manager.is_alive())
    assert (warm.status(), warm.stop()) == ([], 0)


def test_twelve_kernels_asked_for_at_once_come_from_one_server(fresh):
    all_started = threading.Barrier(12)

    async def start() -> tuple[int, int]:
        manager, client = await start_new_async_kernel(kernel_name="mlops")
        pid = manager.provisioner.pid
        parent = server_of(pid)
        all_started.wait(timeout=60)
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
        return pid, parent

    with ThreadPoolExecutor(12) as pool:
        started = list(pool.map(lambda _: asyncio.run(start()), range(12)))
    assert len({pid for pid, _ in started}) == 12
    assert {parent for _, parent in started} == {server["pid"] for server in warm.status()}
    assert len(warm.status()) == 1


def test_an_idle_server_ends_but_not_while_it_has_kernels(fresh, monkeypatch):
    monkeypatch.setenv("MLOPS_KERNEL_IDLE_S", "0.1")
    with kernel() as run:
        time.sleep(0.3)
        assert is_warm(run)
    wait_until(lambda: warm.status() == [])
    wait_until(lambda: [file.name for file in fresh.iterdir()] == ["start.lock"])


def test_another_environment_gets_another_server(fresh, monkeypatch):
    with kernel() as one:
        monkeypatch.setenv("UNRELATED", "1")
        with kernel() as same:
            assert len(warm.status()) == 1
        with kernel(env={**os.environ, "OMP_NUM_THREADS": "3"}) as other:
            assert len(warm.status()) == 2
            parents = {server_of(run.manager.provisioner.pid) for run in (one, other)}
    assert parents == {server["pid"] for server in warm.status()}
    assert same is not other


def test_the_number_of_servers_is_bounded_and_none_that_works_is_ended(fresh, monkeypatch, explained):
    monkeypatch.setattr(servers, "MAX_SERVERS", 2)

    def kernel_of(environment):
        return kernel(env={**os.environ, "OMP_NUM_THREADS": environment})

    with kernel_of("2") as run:
        first = server_of(run.manager.provisioner.pid)
        with kernel_of("3") as other, kernel_of("4") as third:
            second = server_of(other.manager.provisioner.pid)
            assert not is_warm(third)
            assert "2 servers of other environments are busy" in explained()[0]
        wait_until(lambda: not any(server["kernels"] for server in warm.status() if server["pid"] == second))
        with kernel_of("4") as third:
            assert is_warm(third)
            assert is_gone(second)
            assert {server["pid"] for server in warm.status()} == {first, server_of(third.manager.provisioner.pid)}
        assert is_warm(run)


def test_the_hash_seed_of_the_client_counts(fresh):
    env = {**os.environ, "PYTHONHASHSEED": "42"}
    expected = subprocess.check_output([sys.executable, "-c", "print(hash('blue'))"], env=env, text=True)
    with kernel(env=env) as run:
        assert run("print(hash('blue'))") == expected.strip()


def test_a_changed_installation_changes_the_key(tmp_path, monkeypatch):
    packages = tmp_path / "site-packages"
    packages.mkdir()
    monkeypatch.syspath_prepend(packages)
    keys = [compute_key([sys.executable], {})]
    for name in ("a-1.dist-info", "b-1.dist-info"):
        (packages / name).mkdir()
        keys.append(compute_key([sys.executable], {}))
    (packages / "b-1.dist-info").rename(packages / "b-2.dist-info")
    keys += [compute_key([sys.executable], {}), compute_key([sys.executable, "-Xdev"], {})]
    assert len(set(keys)) == 5
    assert compute_key([sys.executable], {}) == compute_key([sys.executable], {"COLOUR": "blue"})


def test_executors_of_spark_share_a_server_though_each_has_a_secret_of_its_own():
    keys = {compute_key([sys.executable], {"PYTHON_WORKER_FACTORY_SECRET": secret}) for secret in ("a", "b")}
    assert len(keys) == 1
    assert keys != {compute_key([sys.executable], {"PYTHONUNBUFFERED": "YES"})}


def test_what_crashed_processes_left_behind_is_swept(fresh):
    (fresh / "k-stale").mkdir()
    (fresh / "k-stale" / "s-1").touch()
    (fresh / "dead.json").write_text("{}")
    (fresh / "dead.sock").touch()
    with kernel(), kernel():
        assert not (fresh / "k-stale").exists()
        assert not list(fresh.glob("dead.*"))
        assert len(list(fresh.glob("k-*"))) == 2
    assert list(fresh.glob("k-*")) == []


FORKED_CLIENTS = """
import multiprocessing as mp
import sys
from concurrent.futures import ProcessPoolExecutor
import nbformat
from nbclient import NotebookClient

def run(number):
    cell = nbformat.v4.new_code_cell(f"import sys; print({number}, 'pandas' in sys.modules or 'x')")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(notebook, kernel_name="mlops").execute()
    return notebook.cells[0].outputs[0].text.split()[0]

run(9)
with ProcessPoolExecutor(2, mp_context=mp.get_context("fork")) as pool:
    print(*pool.map(run, range(4)))
"""


def test_clients_that_multiprocessing_forks_get_kernels_too(tmp_path):
    (tmp_path / "clients.py").write_text(FORKED_CLIENTS)
    done = subprocess.run([sys.executable, tmp_path / "clients.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["0", "1", "2", "3"]
    assert "plain kernel" not in done.stderr


def test_a_client_factory_of_others_is_left_as_it_is():
    class Plain:
        pass

    assert provisioner._quick(Plain) is Plain


# --- refusals and the plain kernel ----------------------------------------------------------------------------------


def test_a_directory_that_others_can_open_is_refused_and_a_plain_kernel_started(fresh, explained):
    fresh.chmod(0o750)
    with pytest.raises(WarmKernelError, match=r"has mode 750, needs 700. Set MLOPS_RUNTIME_DIR"):
        warm.status()
    with kernel() as run:
        assert not is_warm(run)
    assert re.search(r"has mode 750, needs 700\. .* A plain kernel is used", explained()[0])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can play another user")
def test_other_users_are_refused(fresh, directory_of_servers):
    os.chown(fresh, 1, -1)
    with pytest.raises(WarmKernelError, match="belongs to user 1, not to 0"):
        warm.status()
    os.chown(fresh, 0, -1)
    with kernel():
        pass
    (path,) = fresh.glob("*.sock")
    fresh.chmod(0o711)
    path.chmod(0o777)  # even with both doors open
    code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('{path}'); print(s.recv(1))"
    done = subprocess.run(
        [shutil.which("python3", path="/usr/bin") or sys.executable, "-c", code],
        user=1,
        capture_output=True,
        check=False,
    )
    assert done.stdout in (b"b''\n", b""), done


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/tmp/" + "x" * 80, "more than the 80"), ("/proc/x", "cannot be made"), ("/bin/sh/x", "cannot be made")],
)
def test_a_directory_that_cannot_be_used_is_refused(monkeypatch, path, reason):
    monkeypatch.setenv("MLOPS_RUNTIME_DIR", path)
    with pytest.raises(WarmKernelError, match=reason):
        runtime_directory()


def test_a_preload_that_fails_is_explained_once_and_not_repeated(fresh, tmp_path, explained):
    write_module(tmp_path / "light", "numpy", "raise RuntimeError('broken on purpose')")
    for _ in range(2):
        with kernel() as run:
            assert not is_warm(run)
    (line,) = explained()
    assert re.search(
        r"^No warm kernel: the preload failed: RuntimeError: broken on purpose; see '.*\.log'\. A plain", line
    )
    log = re.search("'(.*log)'", line)
    assert log
    written = Path(log[1]).stat().st_mtime_ns
    with kernel() as run:
        assert Path(log[1]).stat().st_mtime_ns == written


def test_a_preload_that_starts_threads_is_refused(fresh, tmp_path, explained):
    write_module(
        tmp_path / "light",
        "numpy",
        "import threading; threading.Thread(target=lambda: __import__('time').sleep(9), daemon=True, name='T').start()",
    )
    with kernel() as run:
        assert not is_warm(run)
    assert "an import started Python threads, which a fork would lose: T" in explained()[0]


@pytest.mark.parametrize("end", [signal.SIGKILL, None], ids=["killed", "hangs"])
def test_a_server_that_does_not_answer_is_replaced_by_a_plain_kernel(fresh, explained, monkeypatch, end):
    with kernel():
        pid = warm.status()[0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(provisioner, "ANSWER_TIMEOUT_S", 30 if end else 0.3)
    if end:
        threading.Timer(0.3, os.kill, (pid, end)).start()
    with kernel() as run:
        assert not is_warm(run)
    if not end:
        os.kill(pid, signal.SIGCONT)
    assert f"its server {'ended without an answer' if end else 'did not answer in time'}" in explained()[0]


def test_a_fork_that_fails_says_why(fresh, tmp_path):
    (tmp_path / "gone").mkdir()
    with kernel():
        pass
    with pytest.raises(WarmKernelError, match="the fork failed: FileNotFoundError"):
        provisioner.fork_kernel(
            [sys.executable, "-m", "ipykernel_launcher", "-f", "x"], env=dict(os.environ), cwd="/nowhere"
        )
    with pytest.raises(WarmKernelError, match="asks for preexec_fn, which a fork cannot give"):
        provisioner.fork_kernel([sys.executable, "-m", "ipykernel_launcher"], env={}, preexec_fn=print)
    with pytest.raises(WarmKernelError, match="asks for a pipe"):
        provisioner.fork_kernel(
            [sys.executable, "-m", "ipykernel_launcher"], env=dict(os.environ), stdout=subprocess.PIPE
        )


def test_without_fork_kernels_are_plain(monkeypatch, explained):
    monkeypatch.delattr(os, "fork")
    with kernel() as run:
        assert not is_warm(run)
    (line,) = explained()
    assert line == (
        f"No warm kernel: kernels cannot be forked on {sys.platform}. "
        "A plain kernel is used; its imports take their usual time."
    )
    assert (warm.status(), warm.stop()) == ([], 0)


def test_the_room_can_be_imported_where_unix_modules_are_missing():
    code = (
        "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None; import mlops_lib.engines.warm.provisioner"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_kernelspec_of_another_program_is_started_as_ever(fresh, explained):
    shell = 'exec "$0" -m ipykernel_launcher -f "$1"'
    manager = KernelManager()
    manager._kernel_spec = KernelSpec(
        argv=["/bin/sh", "-c", shell, sys.executable, "{connection_file}"],
        display_name="other", language="python", metadata={"kernel_provisioner": {"provisioner_name": "mlops-warm"}},
    )  # fmt: skip
    manager.start_kernel(stderr=subprocess.DEVNULL)
    assert (manager.transport, manager.is_alive()) == ("tcp", True)
    manager.shutdown_kernel(now=True)
    assert (explained(), warm.status()) == ([], [])


# --- through stock tools --------------------------------------------------------------------------------------------


def test_stock_tools_use_warm_kernels_unmodified(tmp_path):
    assert warm.environment() == {"JUPYTER_DEFAULT_PROVISIONER_NAME": "mlops-warm"}
    nbformat.write(
        new_notebook("import mlflow, sklearn, pandas", f"assert {IS_WARM}", "print(6 * 7)"), tmp_path / "a.ipynb"
    )
    # One process, as each would import for two seconds. With --nbval-current-env the kernel is nbval's own spec.
    code = """
        import sys, papermill.cli, pytest
        papermill.cli.papermill(["--no-progress-bar", "a.ipynb", "executed.ipynb"], standalone_mode=False)
        options = ["-q", "-p", "no:cacheprovider", "--nbval", "executed.ipynb"]
        sys.exit(pytest.main(options) or pytest.main([*options, "--nbval-current-env"]))
    """
    env = {**os.environ, **warm.environment()}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("3 passed") == 2


def test_nbclient_runs_many_notebooks_at_once_on_warm_kernels():
    async def run_all() -> list[Any]:
        notebooks = [new_notebook(f"assert {IS_WARM}", f"answer = {i}", "answer", name="mlops") for i in range(8)]
        return list(await asyncio.gather(*(NotebookClient(notebook).async_execute() for notebook in notebooks)))

    executed = asyncio.run(run_all())
    assert [notebook.cells[-1].outputs[0]["data"]["text/plain"] for notebook in executed] == [str(i) for i in range(8)]


def test_install_writes_a_kernelspec_that_survives_a_second_install(tmp_path):
    for _ in range(2):
        folder = warm.install(tmp_path)
    spec = json.loads((folder / "kernel.json").read_text())
    assert folder == tmp_path / "share" / "jupyter" / "kernels" / "mlops"
    assert spec["display_name"] == "Python 3 (warm)"
    assert spec["metadata"]["kernel_provisioner"] == {"provisioner_name": "mlops-warm"}
    assert spec["argv"][0] == sys.executable


def test_a_stranger_who_says_nothing_does_not_hold_up_the_server(directory_of_servers):
    with kernel():
        pass
    (path,) = directory_of_servers.glob("*.sock")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(path))
        with kernel() as run:
            assert is_warm(run)
