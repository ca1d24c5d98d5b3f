"""`python -m experiments.atr_small`: the work is in a module that worker processes can import."""

from experiments.atr_small.reproduce import main

if __name__ == "__main__":
    main()
