"""The measurements: ours and a baseline, interleaved in one run on one machine. Run by `python -m bench`."""
