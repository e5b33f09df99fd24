"What processes hold while images stream through them: work for children, in a module that imports little."
import json
import os
from pathlib import Path

import torch
from torch import nn

from robustnb import streaming
from robustnb.sources import as_source
from robustnb.streaming import Settings, answer_blocks


def own_memory(pid=None):
    "MB that a process and its children hold, what they share counted once."
    pids, total = [pid or os.getpid()], 0
    for pid in pids:
        try:
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            total += next(
                int(line.split()[1])
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:")
            )
        except (OSError, StopIteration): pass
    return total / 1024


def held_while_asked(folder, out):
    "Memory whenever a model is asked, above what there was before."
    seen, source = [], as_source(str(folder), size=224)
    class Watch(nn.Module):
        def forward(self, x):
            seen.append(own_memory() - before)
            return x.mean((2, 3)) @ torch.eye(3, 10)
    streaming.HELD = 2**22  # often: what is looked for is held, not free
    before = own_memory()
    answer_blocks(
        Watch(),
        source,
        [("clean", 0), ("impulse_noise", 1), ("contrast", 3)],
        Settings("imagenet-c", workers=2, batch=16, show=False),
    )
    Path(out).write_text(json.dumps(seen))


class Blank:
    "Black pictures, made when they are asked for."
    name, classes, labels = "blank", tuple("0123456789"), None

    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def block(self, i):
        n = min(64, self.n - 64 * i)
        return torch.zeros(n, 3, 224, 224, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64)


def freed_and_kept(n, held, out):
    "MB that this process holds whenever a model that takes 200 MB for a moment is asked; glibc keeps what is freed."
    looks = []
    def look(): looks.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
    class Wide(nn.Module):
        def forward(self, x):
            look()
            torch.ones(50_000_000)
            return torch.zeros(len(x), 10)
    streaming.HELD = held
    streaming.keep_memory()
    answer_blocks(Wide(), as_source(Blank(n)), [("clean", 0)], Settings("imagenet-c", workers=0, batch=64, show=False))
    look()
    Path(out).write_text(json.dumps(looks))
