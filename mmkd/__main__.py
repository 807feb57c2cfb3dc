"""`python -m mmkd`, and so `deepspeed -m mmkd` and `torchrun -m mmkd`."""

from mmkd.cli import main

main()
