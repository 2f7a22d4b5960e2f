"""A Python that has torch loaded already, for tests that start many scripts from bash: each is a fork of one process.

python tests/forks.py SOCKET serves; the file that `write_client` makes is what the scripts take as PYTHON.
KILLED_IN=RUN:EPOCH in their environment kills that run when it has logged that epoch, as a power cut would.
"""

import gc
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
socket.send_fds(connection, [b"-"], [0, 1, 2])
connection.sendall(json.dumps([os.getcwd(), sys.argv[1:], dict(os.environ)]).encode())
connection.shutdown(socket.SHUT_WR)
answers = connection.makefile()
pid = int(answers.readline())
signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
sys.exit(int(answers.read() or 1))
"""


def write_client(path: Path, address: Path) -> None:
    path.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    path.chmod(0o755)


def killed_in(name: str, epoch: int) -> None:
    from helper.run import Run

    real = Run.log

    def log(self, file_name, row):
        real(self, file_name, row)
        if self.folder.name == name and row["epoch"] == epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    Run.log = log


def work(connection: socket.socket) -> None:
    """Does in this process what a Python with the client's arguments would do."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    cwd, arguments, environment = json.loads(connection.makefile().read())
    for n, stream in enumerate(streams):
        os.dup2(stream, n)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    if "KILLED_IN" in environment:
        name, _, epoch = environment["KILLED_IN"].rpartition(":")
        killed_in(name, int(epoch))
    code = 0
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # to take down all of torch in order is a second's work


def serve(address: str) -> None:
    import torch._dynamo  # noqa: F401  an optimiser's first step loads it

    import train_student  # noqa: F401  the forks have them then
    import train_teacher  # noqa: F401
    from scripts import compare_predictions, summarize  # noqa: F401

    gc.freeze()
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # of a job in the background it is ignored
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            child = os.fork()
            if child == 0:
                work(connection)
            connection.sendall(f"{child}\n".encode())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            connection.sendall(str(code if code >= 0 else 128 - code).encode())
            os._exit(0)
        connection.close()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    serve(sys.argv[1])
