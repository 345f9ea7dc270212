"""Methods of circuit discovery, one file each. The module can be called, `acdc.methods()`, to list them: once it is
imported, it would take the place of a function of this name."""

import sys
from types import ModuleType

from acdc.registry import METHODS


class _Methods(ModuleType):
    def __call__(self) -> dict[str, str]:
        """The methods: name → what it does."""
        return {name: method.what for name, method in METHODS.items()}


sys.modules[__name__].__class__ = _Methods
