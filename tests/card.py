"""A graphics card that is played by the CPU: tensors that say `cuda:0` and hold their values here.

What a real card refuses is refused: operations between its tensors and the CPU's (but for single numbers and
indices), numpy's view of them, draws with a generator of the other side. All else is computed, so values can be compared.
"""
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CARD, aten, Generator = torch.device("cuda:0"), torch.ops.aten, torch.Generator  # which a test may replace
CROSSING = (aten.copy_.default, aten._to_copy.default)
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._unsafe_index.Tensor)


class OnCard(torch.Tensor):
    "A tensor on the card."

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=CARD)

    def __init__(self, held): self.held = held
    def __repr__(self, **ignored): return f"on the card: {self.held}"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return computed(func, args, kwargs or {})


class Draws(Generator):
    "A generator of the card."
    device = CARD


def on_card(device): return device is not None and torch.device(device).type == CARD.type


def computed(func, args, kwargs):
    "An operation, where its operands lie."
    tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, torch.Tensor)]
    far, near = [t for t in tensors if isinstance(t, OnCard)], [
        t for t in tensors if not isinstance(t, OnCard) and t.dim()
    ]
    if func in INDEXING and isinstance(args[0], OnCard):
        near = [t for t in near if not any(t is i for i in args[1])]  # a card takes indices of the CPU
    if far and near and func not in CROSSING:
        raise RuntimeError(f"{func}: tensors on the card and on the CPU: {[tuple(t.shape) for t in tensors]}")
    asked = kwargs.get("device")
    there = on_card(asked) if asked is not None else isinstance(
        args[0], OnCard
    ) if func is aten.copy_.default else bool(far)
    kwargs = {
        **kwargs, **({} if asked is None else dict(device="cpu")),
        **(dict(pin_memory=False) if kwargs.get("pin_memory") else {})
    }
    held = lambda t: t.held if isinstance(t, OnCard) else t
    found, known = func(*tree_map(held, args), **tree_map(held, kwargs)), {id(t.held): t for t in far}
    def placed(t):
        if not there or not isinstance(t, torch.Tensor) or isinstance(t, OnCard): return t
        return known[id(t)] if id(t) in known else OnCard(t)
    return tree_map(placed, found)


class Checked(TorchFunctionMode):
    "Whose draws, and numbers that are made on the card."

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, me = kwargs or {}, args[0] if args and isinstance(args[0], torch.Tensor) else None
        drawn = next((a for a in [*args, *kwargs.values()] if isinstance(a, Generator)), None)
        if drawn is not None:
            device = kwargs.get("device") or (me.device if me is not None else "cpu")
            if on_card(device) != on_card(drawn.device):
                raise RuntimeError(f"{func}: draws of {drawn.device} for a tensor on {device}")
        if func in (torch.Tensor.new_tensor, torch.tensor, torch.as_tensor):
            own = func is torch.Tensor.new_tensor
            device = kwargs.pop("device", None) or (me.device if own else "cpu")
            if own: func, args, kwargs = torch.tensor, args[1:], {"dtype": me.dtype, **kwargs}
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


class Card(TorchDispatchMode):
    "While it is open, there is a card. The process believes so from then on: open it in a child."

    def __enter__(self):
        torch._C._ensureCUDADeviceGuardSet()
        torch.cuda._lazy_init = lambda: None  # nobody looks for a driver
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # whole only in inference mode
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self: return func.decompose(*args, **kwargs or {})
        return computed(func, args, kwargs or {})
