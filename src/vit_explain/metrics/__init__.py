"""One metric a file. Importing this package registers every module in it; nothing else lists them."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
