"""`python -m experiments.ar_paper_size`: the work is in a module that worker processes can import."""

from experiments.ar_paper_size.reproduce import main

if __name__ == "__main__":
    main()
