"""``python -m experiments`` is ``opsin``."""

from experiments.cli import main

if __name__ == "__main__":
    main()
