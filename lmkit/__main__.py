"""``python -m lmkit``, for ``accelerate launch -m lmkit`` and torchrun."""

from lmkit.cli import main

if __name__ == "__main__":
    main()
