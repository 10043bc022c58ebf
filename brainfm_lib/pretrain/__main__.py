"""``python -m brainfm_lib.pretrain PROFILE``, for launchers that start several processes."""

from brainfm_lib.cli import pretrain_main

if __name__ == "__main__":
    pretrain_main()
