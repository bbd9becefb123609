from songci.attention.page import main
from songci.cli import run

if __name__ == "__main__":
    run(main)
