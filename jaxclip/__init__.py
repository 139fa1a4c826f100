"""jaxclip: pretrain image-text models with JAX.

`jaxclip.load(PATH)` opens a trained model; `python -m jaxclip.main` trains one.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `import jaxclip` stays as quick as `import jax`.
    if name == "load":
        from jaxclip.model import load

        return load
    raise AttributeError(f"module 'jaxclip' has no attribute {name!r}")
