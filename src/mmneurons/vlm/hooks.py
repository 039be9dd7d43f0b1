"""Listening to modules while a model runs, and leaving nothing behind."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import RLock
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

__all__ = ["Listener", "evaluating", "hooked", "listening"]

Listener = Callable[[Tensor], Tensor | None]
"""Gets the tensor that a module takes or gives; what it returns, if anything, takes the tensor's place."""


_LOCKS: WeakKeyDictionary = WeakKeyDictionary()
_LOCKS_LOCK = RLock()


@contextmanager
def listening(
    model: nn.Module,
    inputs: Mapping[str, Listener] | None = None,
    outputs: Mapping[str, Listener] | None = None,
) -> Iterator[None]:
    """Call ``inputs[name]`` with what module ``name`` is given, ``outputs[name]`` with what it returns.

    A module that takes or returns several things is heard through the first tensor. The hooks are gone when the block
    is left, however it is left. Another thread that wants to listen to the model waits until then.
    """
    before = {name: _hear_input(listener) for name, listener in (inputs or {}).items()}
    after = {name: _hear_output(listener) for name, listener in (outputs or {}).items()}
    with hooked(model, before, after):
        yield


@contextmanager
def hooked(
    model: nn.Module,
    before: Mapping[str, Callable[..., object]],
    after: Mapping[str, Callable[..., object]],
    first: bool = False,
) -> Iterator[None]:
    """As ``listening``, with hooks as torch has them, which are given keyword arguments, too.

    ``first``: what they return is what hooks that are there already get to see.
    """
    with ExitStack() as stack:
        with _LOCKS_LOCK:
            lock = _LOCKS.setdefault(model, RLock())
        stack.enter_context(lock)
        for name, hook in before.items():
            handle = model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        for name, hook in after.items():
            handle = model.get_submodule(name).register_forward_hook(hook, with_kwargs=True, prepend=first)
            stack.callback(handle.remove)
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout and the like off, without gradients; afterwards every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _hear_input(listener: Listener) -> Callable[..., tuple | None]:
    def hook(_module: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        if args and isinstance(args[0], Tensor):
            replacement = listener(args[0])
            return None if replacement is None else ((replacement, *args[1:]), kwargs)
        name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
        replacement = listener(kwargs[name])
        return None if replacement is None else (args, {**kwargs, name: replacement})

    return hook


def _hear_output(listener: Listener) -> Callable[..., object]:
    def hook(_module: nn.Module, _args: tuple, _kwargs: dict, output: object) -> object:
        if isinstance(output, Tensor):
            return listener(output)
        if isinstance(output, tuple):
            replacement = listener(output[0])
            return None if replacement is None else (replacement, *output[1:])
        raise TypeError(f"cannot listen to a {type(output).__name__}")

    return hook
