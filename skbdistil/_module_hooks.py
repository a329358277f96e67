"""What a user may have put into modules, which is lost where they are not called."""

from itertools import repeat
from operator import contains

from torch.nn.modules import module as torch_module

__all__ = ["has_own_forward", "hooks"]


def hooks(root):
    """Dicts of the hooks that a pass through a module would run."""
    found = [torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks]
    for module in root.modules():
        found += [module._forward_hooks, module._forward_pre_hooks]
    return found


def has_own_forward(attributes):
    """Whether a module, of those with these attributes, has a method put in."""
    return any(map(contains, attributes, repeat("forward")))
