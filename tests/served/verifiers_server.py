"""Serves a taskset beside this file with verifiers' own server. Run by an interpreter that has `verifiers`:

python verifiers_server.py TASKSET TASKS     writes the tasks to the file TASKS, prints the address, serves until killed
"""

import multiprocessing
import os
import sys
import threading
from pathlib import Path

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)
os.environ["PYTHONPATH"] = HERE  # servers of tools are started as modules of the taskset's name
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # for `uv`, which runs the harness

if __name__ == "__main__":
    import verifiers.v1 as vf
    from parent import end_with_parent
    from verifiers.v1.serve import serve_env
    from verifiers.v1.utils.loaders import taskset_class

    end_with_parent()
    name, file = sys.argv[1:]
    tasks = taskset_class(name)(vf.TasksetConfig(id=name))
    Path(file).write_text("".join(f"{task.data.model_dump_json()}\n" for task in tasks))
    addresses = multiprocessing.Queue()
    threading.Thread(target=lambda: print(addresses.get(), flush=True), daemon=True).start()
    config = {"taskset": {"id": name}, "agent": {"harness": {"id": "null"}, "runtime": {"type": "subprocess"}}}
    serve_env(max_workers=1, elastic=False, address="tcp://127.0.0.1:*", address_queue=addresses, config_data=config)
