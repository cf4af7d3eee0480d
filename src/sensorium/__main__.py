"""`python -m sensorium` is `sensorium`."""

from sensorium.cli.app import main

main()
