"""An accelerator that is played on the CPU, for tests where there is none.

Its tensors say that they are on torch's meta device and keep their numbers on the CPU.
Like those of an accelerator, they cannot be combined with tensors of the CPU, but for
single numbers, and NumPy cannot read them. Every copy to it, from it, and every number
that is read from it is recorded.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")

# Operators that bring numbers to Python: the program waits for the device.
_READS = ("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero")
# Copies, which may be from one device to the other.
_COPIES = ("_to_copy", "copy_")


class _OnDevice(torch.Tensor):
    """A tensor of the simulated device; see the module.

    Parameters
    ----------
    held : torch.Tensor
        On the CPU.
    """

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"_OnDevice({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} of a simulated device that is switched off.")


class _TakenApart(TorchFunctionMode):
    """Takes apart what subclasses cannot do as a whole: a copy, and the rest."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.numpy and kwargs.get("force"):
            return func(args[0].detach().cpu())
        if func is torch.Tensor.tolist:
            return func(args[0].cpu())
        if func in (torch.tensor, torch.as_tensor) and "device" in kwargs:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


class SimulatedDevice(TorchDispatchMode):
    """Plays the device within a ``with`` statement.

    Attributes
    ----------
    sent, fetched : list of tuple of int
        Shapes of the tensors that were copied to the device and from it.
    n_reads : int
        Numbers that Python has asked for.
    """

    def __init__(self):
        super().__init__()
        self._taken_apart = _TakenApart()
        self.clear()

    def __enter__(self):
        self._taken_apart.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._taken_apart.__exit__(*error)

    def clear(self):
        """Forget what was recorded."""
        self.sent, self.fetched, self.n_reads = [], [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_has_compatible_shallow_copy_type":
            # A module that moves gets new parameters.
            return False
        if name == "to":
            # In inference mode, which does not take it apart by itself.
            with self, torch._C.DisableTorchFunction():
                return func.decompose(*args, **kwargs)
        given = [
            item for item in tree_flatten((args, kwargs))[0] if torch.is_tensor(item)
        ]
        there = [tensor for tensor in given if isinstance(tensor, _OnDevice)]
        asked = kwargs.get("device")
        is_there = bool(there) if asked is None else torch.device(asked) == DEVICE
        if name == "copy_":
            is_there = isinstance(args[0], _OnDevice)
        if not there and not is_there:
            return func(*args, **kwargs)
        if name in _COPIES:
            was_there = isinstance(given[-1], _OnDevice)
            if is_there and not was_there:
                self.sent.append(tuple(given[-1].shape))
            elif was_there and not is_there:
                self.fetched.append(tuple(given[-1].shape))
        else:
            for tensor in given:
                if tensor.ndim and not isinstance(tensor, _OnDevice):
                    raise RuntimeError(
                        f"{func} mixes devices: {[tuple(one.shape) for one in given]}"
                    )
        if name in _READS:
            self.n_reads += 1
        if asked is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        inner_args, inner_kwargs = tree_map_only(
            _OnDevice, lambda tensor: tensor.held, (args, kwargs)
        )
        result = func(*inner_args, **inner_kwargs)
        if not is_there:
            return result
        result = tree_map_only(torch.Tensor, _OnDevice, result)
        return return_and_correct_aliasing(func, args, kwargs, result)
