"""`python -m experiments.ioi MODEL --out DIR`."""

from experiments.ioi.study import main

if __name__ == "__main__":
    main()
