"""Children that are no copies of the test process.

A forked copy of a process that has computed gradients may refuse to compute more ("autograd's threading in combination
with fork"); which tests ran before decides. A server that has only imported what training needs is forked instead.
"""
import multiprocessing
import os

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["robustnb.models", "robustnb.training", "torch._dynamo", "accelerate.state", "pytest"])


def started(function, *args):
    "A process that runs a function of a module on one thread and ends."
    process = CONTEXT.Process(target=on_one_thread, args=(function, *args))
    process.start()
    return process


def on_one_thread(function, *args):
    import torch

    torch.set_num_threads(1)
    function(*args)


def join_pair(rank, port):
    "Tell this process what torchrun would tell one of two on this machine."
    from accelerate.state import AcceleratorState

    many = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    os.environ |= {k: str(v) for k, v in many.items()} | dict(ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="")
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
