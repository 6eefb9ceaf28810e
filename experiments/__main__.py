"""``python -m experiments`` is ``opsin``."""

from commands.main import main

if __name__ == "__main__":
    main()
