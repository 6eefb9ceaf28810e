"""``python -m opsin`` is ``opsin``."""

from opsin.commands.main import main

if __name__ == "__main__":
    main()
