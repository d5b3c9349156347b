"""``python -m unet_med``: the command line, for launchers that start modules (``torchrun -m unet_med train ...``)."""

from unet_med.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
