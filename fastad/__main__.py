"""`python -m fastad`: the command line, also for launchers such as torchrun."""

from fastad.cli import main

if __name__ == "__main__":
    main()
