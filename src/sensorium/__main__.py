"""Run the command line as `python -m sensorium`."""

from sensorium.cli.app import main

main()
