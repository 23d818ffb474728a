"""`python -m fpgasim` is the command `fpgasim`."""

from fpgasim.cli import main

main(prog_name="fpgasim")
