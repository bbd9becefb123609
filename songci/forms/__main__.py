from songci.cli import run
from songci.forms.templates import main

if __name__ == "__main__":
    run(main)
